"""How the training programs open the base model that the settings name."""

from __future__ import annotations

from likeness.config.base import ModelSource
from likeness.klein.load import BaseModel
from likeness.lease import device_of_job


def open_base(
    model: ModelSource,
    *,
    offline: bool,
    dtype: str = "float32",
    on_gpu: bool = False,
    device: str | None = None,
) -> BaseModel:
    """Describe the base model, without loading any of its parts.

    `on_gpu` puts them on a leased GPU where there is one; a process that was given its `device` leases none.
    """
    return BaseModel(
        model.source,
        revision=model.revision,
        offline=offline,
        sha256=model.sha256,
        dtype=dtype,
        device=device or (device_of_job() if on_gpu else "cpu"),
    )
