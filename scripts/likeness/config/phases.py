"""Settings of the phases: which samples each one trains on, and with what it starts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from likeness.config.base import KeysOf, Settings
from likeness.config.masks import MaskKind
from likeness.config.quality import QualityLimits
from likeness.config.training import TrainingSettings

PREVIOUS_GROUP = "previous:"
LOSS_COLUMN = "train_loss_percentile"
"""The column that the losses of a training give to the phase after it: near 0 for the sample learned best, near 100 for the worst."""


class PhaseSettings(Settings):
    """One phase; phases run in the order in which they are written, each on a subset of the one before."""

    where: str = Field(
        default="true", description="SQL condition over the sample's columns (quality, captions, photos or pairs)."
    )
    order_by: str = Field(default="sha256", description="SQL order; ties break by the hash of the picture.")
    losses_of: str | None = Field(
        default=None,
        description="Variant whose training on the phase before gives the column train_loss_percentile (0 to 100) to where, "
        "in parts of their own joined by AND, and to order_by, as its first terms.",
    )
    top: int | None = Field(default=None, ge=1, description="Keep only the first so many.")
    balance: dict[Literal["close", "half", "full"], float] | None = Field(
        default=None,
        description="Wished share of each framing, such as a third each; samples over the share are dropped.",
    )
    balance_tolerance: float = Field(
        default=0.1, ge=0, le=1, description="How far a framing's share may lie from its wish, as a share of the whole."
    )
    always: tuple[str, ...] = Field(
        default=(),
        description="Names kept by hand in spite of every limit; a file that cannot be read or has no caption cannot be kept.",
    )
    never: tuple[str, ...] = Field(default=(), description="Names dropped by hand.")
    nested: bool = Field(default=True, description="Draw from the phase before; false draws from all usable samples.")
    init: str = Field(
        default="previous",
        description="Weights to start from: previous, scratch, the path of a LoRA, or previous:<group>, which takes that "
        "group of the previous phase's training.adapter.groups alone; other modules then start fresh.",
    )
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps of this phase; else the variant's.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="Learning rate of this phase; else the variant's."
    )
    training: Annotated[dict[str, object], KeysOf(TrainingSettings)] = Field(
        default_factory=dict,
        description="Keys of `training` that this phase changes, such as losses.velocity.weighting or adapter.freeze.",
    )

    @property
    def follows(self) -> bool:
        """Whether it starts from weights of the phase before, and not from scratch or a file."""
        return self.init == "previous" or self.init.startswith(PREVIOUS_GROUP)

    @property
    def file(self) -> str | None:
        """The LoRA that it starts from, where that is a file."""
        return None if self.follows or self.init == "scratch" else self.init

    @property
    def group(self) -> str | None:
        """The group of the phase before whose weights alone it starts from."""
        return self.init.removeprefix(PREVIOUS_GROUP) if self.init.startswith(PREVIOUS_GROUP) else None


class DecisionStage(Settings):
    """The slice that decide_phases reads; `order` names the phases as written, since canonical JSON sorts them.

    Phases in `refined` get candidates only: their SQL is without the parts about losses, and `top` comes later.
    """

    kind: Literal["photos", "pairs"]
    recipe: Literal["character", "style", "edit"] = "character"
    phases: dict[str, PhaseSettings]
    order: tuple[str, ...] = ()
    refined: tuple[str, ...] = ()
    limits: QualityLimits
    min_identity: float
    held_out: int
    mask_kind: MaskKind | None
    always: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def restore_order(cls, values: Any) -> Any:
        """Put the phases back into their order; theirs is the order of training."""
        order = values.get("order") or list(values["phases"])
        return {**values, "order": order, "phases": {name: values["phases"][name] for name in order}}


class RefineStage(Settings):
    """The slice that refine_phase reads: what a phase asks of the losses, whose samples it draws from, how many it keeps."""

    where: str
    order_by: str
    top: int | None
    nested: bool
