"""What the trainings of a subject are expected to need: the one source of the figures that people are told beforehand.

Nothing here was measured. Memory was counted by `benchmarks/count_memory.py`; time is that of the operations of every
step (`flops.py`) at a fraction of what the GPU reaches in large products. docs/performance.md says how to measure.
"""

from __future__ import annotations

from typing import NamedTuple

from likeness.config.photos import PairFolder
from likeness.config.subject import Subject
from likeness.config.training import TrainingSettings
from likeness.klein.family import MAX_TEXT_TOKENS, Layout, known_layout
from likeness.klein.targets import matched_names, target_regex
from likeness.training.flops import step_flops

COUNTED_PX, TOKEN_PX = 1024, 16
H200_FLOPS = 788e12
"""What its large products in bfloat16 reach a second; a quotient of public peaks makes an RTX 4090 five times slower."""
SLOWER_4090 = 5
REACHED = 0.5
"""Share of that speed which a step is taken to reach; docs/benchmarks.md aims at 0.54."""
TYPICAL_SAMPLES = 25
"""Of a phase, for `steps: auto`."""


class CountedGib(NamedTuple):
    """The most GiB of a step at rank 32 on all blocks, batch 1, 1024 px, base in bf16, and what each reference adds."""

    kept: float
    recomputed: float
    kept_a_reference: float
    recomputed_a_reference: float


COUNTED = {
    "klein-4b": CountedGib(28.8, 9.7, 18.7, 1.7),
    "klein-9b": CountedGib(53.8, 20.8, 31.9, 2.5),
}


def memory_needed(subject: Subject) -> tuple[float, float] | None:
    """GiB with all blocks recomputed (`gradient_checkpointing: true`) and with none; None for an unknown base model."""
    layout = known_layout(subject.base_model.source)
    counted = COUNTED.get(layout.name) if layout else None
    if counted is None:
        return None
    more = references_of(subject) * reference_area(subject.training)
    return (
        counted.recomputed + more * counted.recomputed_a_reference,
        counted.kept + more * counted.kept_a_reference,
    )


def memory_told(subject: Subject) -> str:
    """`10 GiB of GPU memory at 1024 px with gradient checkpointing, 29 GiB without`; empty for an unknown base model."""
    needed = memory_needed(subject)
    if needed is None:
        return ""
    recomputed, kept = needed
    return f"{recomputed:.0f} GiB of GPU memory at {COUNTED_PX} px with gradient checkpointing, {kept:.0f} GiB without"


def time_told(subject: Subject) -> str:
    """`1500 steps, about 7 minutes on an H200 or 36 minutes on an RTX 4090`; empty for an unknown base model."""
    layout = known_layout(subject.base_model.source)
    if layout is None:
        return ""
    trainings = [
        subject.training_of(variant, phase).resolve_steps(TYPICAL_SAMPLES)
        for variant in subject.trained_variants
        for phase in subject.phases_of(variant)
    ]
    minutes = sum(one.fixed_steps * step_seconds(one, layout, references_of(subject)) for one in trainings) / 60
    steps = sum(one.fixed_steps for one in trainings)
    return f"{steps} steps, about {duration(minutes)} on an H200 or {duration(SLOWER_4090 * minutes)} on an RTX 4090"


def duration(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"


def step_seconds(training: TrainingSettings, layout: Layout, references: int) -> float:
    """Seconds of one optimizer step on an H200, by its operations; other resolutions beside the first are not counted."""
    names = matched_names(target_regex(training.targets, layout), layout)
    side_px = training.buckets.resolution_px
    tokens = round((side_px / TOKEN_PX) ** 2 + references * reference_area(training) * (COUNTED_PX / TOKEN_PX) ** 2)
    every = training.checkpoint_every if training.gradient_checkpointing else 0
    recomputed = range(0, layout.num_double + layout.num_single, every) if every else ()
    flops = step_flops(layout, dict.fromkeys(names, training.rank), tokens, MAX_TEXT_TOKENS, recomputed).total
    return flops * training.batch_size * training.gradient_accumulation / (H200_FLOPS * REACHED)


def reference_area(training: TrainingSettings) -> float:
    """Area of a reference over that of 1024 px square, which is the pipeline's own cap."""
    return ((training.buckets.reference_resolution_px or COUNTED_PX) / COUNTED_PX) ** 2


def references_of(subject: Subject) -> int:
    """References of a sample, an edit's source among them; of folders that do not name their roles the source alone."""
    return max((len(roles_of(folder)) for folder in subject.pairs), default=0)


def roles_of(folder: PairFolder) -> set[str]:
    """The roles that a sample of a folder is known to have beside its target."""
    return set(folder.roles or {"source": ""}) - {"target"}
