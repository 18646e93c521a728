"""Settings of the exports to other trainers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from likeness.config.base import ModelSource, Settings
from likeness.config.training import TrainingSettings


class ExportSettings(Settings):
    """One export; a bare list of trainer names in YAML takes these defaults."""

    phases: tuple[str, ...] = Field(default=(), description="Which phases are exported; none means all.")
    overrides: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Keys of the trainer's own config file to set by hand, as the trainer spells them.",
    )


class ExportStage(Settings):
    """The slice that export_dataset reads, for one phase and trainer."""

    trainer: str
    training: TrainingSettings
    kind: Literal["photos", "pairs"]
    recipe: str
    trigger: str
    class_word: str = "person"
    base_model: ModelSource
    prompts: tuple[str, ...] = ()
    overrides: dict[str, str | int | float | bool] = Field(default_factory=dict)
