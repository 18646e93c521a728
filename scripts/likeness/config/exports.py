"""Settings of the exports to other trainers."""

from __future__ import annotations

from pydantic import Field

from likeness.config.base import Settings


class ExportSettings(Settings):
    """One export; a bare list of trainer names in YAML takes these defaults."""

    phases: tuple[str, ...] = Field((), description="Which phases are exported; none means all.")
    overrides: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Keys of the trainer's own config file to set by hand, as the trainer spells them.",
    )
