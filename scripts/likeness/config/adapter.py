"""Settings of the adapter beyond its rank, alpha and targets; nothing here is needed for a plain LoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from likeness.config.base import NAME_PATTERN, Settings


class OrthogonalSettings(Settings):
    """Frozen down matrices, so that LoRAs of one rank trained apart can be added up without crosstalk (arXiv:2312.02432)."""

    concept: int = Field(
        ge=0,
        le=1000,
        description="Number of this LoRA among those of the same rank to be added up; each number has its own directions of a "
        "shared basis, as many as the rank. Numbers of LoRAs of other ranks share some of them.",
    )


class AdapterSettings(Settings):
    """What kind of adapter is trained, and which parts of it have another rank, are restricted, frozen, or saved apart."""

    kind: Literal["lora", "dora", "lokr"] = Field(
        default="lora",
        description="lora; dora: a LoRA with a trained length for every row of the weight (arXiv:2402.09353), slower, of "
        "which no ComfyUI file is written; lokr: a Kronecker product of two matrices (LyCORIS), a small file that is "
        "also published as the LoRA that it equals.",
    )
    lokr_factor: int = Field(
        default=8,
        ge=2,
        le=64,
        description="lokr: side of the first matrix; it must divide the inputs and outputs of every target.",
    )
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(
        default_factory=dict,
        description="Rank by choice of targets, such as `all_blocks@single=0-5`; the first that fits.",
    )
    alphas: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Alpha by choice of targets; without one, alpha / rank is that of the whole."
    )
    rows: Literal["all", "qkv"] = Field(
        default="all",
        description="qkv trains only the query, key and value rows of the single blocks' fused projection, not its MLP's.",
    )
    orthogonal: OrthogonalSettings | None = Field(
        default=None,
        description="Freezes the down matrices to a share of one basis, for LoRAs of one rank; null trains both factors. It does "
        "not go with ranks.",
    )
    freeze: str | None = Field(
        default=None,
        description="Choice of targets that keep the weights they start with; other modules may be absent from the file "
        "that training starts from, and then start fresh (ConsisLoRA's second step).",
    )
    groups: dict[Annotated[str, Field(pattern=NAME_PATTERN)], str] = Field(
        default_factory=dict,
        description="Trained together and also saved apart: a choice of targets by name, such as content and style (B-LoRA).",
    )

    @model_validator(mode="after")
    def check_kind(self) -> AdapterSettings:
        if self.kind != "lora" and self.rows != "all":
            raise ValueError(f"rows: {self.rows!r} restricts a LoRA's second factor, which kind {self.kind} lacks")
        if self.kind != "lora" and self.orthogonal:
            raise ValueError(f"orthogonal: frozen directions keep LoRAs apart, not adapters of kind {self.kind}")
        if self.orthogonal and self.ranks:
            raise ValueError(
                f"ranks: {', '.join(self.ranks)} would have another rank, but orthogonal keeps LoRAs apart only where all have one "
                "rank. Remove ranks and set training.rank, or remove orthogonal"
            )
        return self

    @model_validator(mode="after")
    def check_groups(self) -> AdapterSettings:
        taken = {"raw", "ema"} & set(self.groups)
        if taken:
            raise ValueError(f"groups: {sorted(taken)[0]!r} is the name of other files; choose another")
        return self
