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


class TrainerCommand(Settings):
    """How another trainer is started on this machine, for variants that name it as their `trainer`."""

    command: str = Field(
        min_length=1,
        description="Shell command line, run by bash inside the rendered dataset's folder, in which config/ and data/ lie.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables for it, such as PATH of its own environment; ours is not passed on.",
    )
    overrides: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Keys of the trainer's own config file to set by hand, as in `export`.",
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


class ExternalStage(Settings):
    """The slice that train_external reads, for one variant and phase."""

    export: ExportStage
    command: TrainerCommand
    base_model: ModelSource
    offline: bool = True
