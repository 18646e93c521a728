"""The register of metrics: what each is, which way is better, against what it is taken, and the function that measures it.

A metric function takes one `Sample` and returns `Measured`: a number, or null with its reason. Metrics of one group are
measured together and stored as one item an image, keyed by what `inputs` of the group names; a group that is cheap
(arithmetic on stored embeddings) is not stored. Heavy libraries are imported inside the functions, so that the choice can
read directions without loading them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from likeness.config.metrics import DIRECTIONS, Direction

if TYPE_CHECKING:
    from likeness.evaluation.sample import Sample

Group = Literal["derived", "pixels", "lpips", "clip", "diversity", "dino"]


class Measured(NamedTuple):
    """A number with status 'ok', or None with the reason why there is none."""

    value: float | None
    status: str = "ok"


def not_measured(status: str) -> Measured:
    """A null: 'no_face', 'no_weights: …', 'not_applicable: …', 'too_few: …'."""
    return Measured(None, status)


@dataclass(frozen=True)
class Metric:
    """What a metric is. `kinds` are the prompt kinds it means something for; `version` rises when numbers would differ."""

    name: str
    direction: Direction
    unit: str
    against: str
    meaning: str
    group: Group
    kinds: frozenset[str]
    version: int
    measure: Callable[[Sample], Measured]


REGISTRY: dict[str, Metric] = {}
ALL_KINDS = ("subject", "bleed", "neutral")


def metric(
    name: str,
    *,
    unit: str,
    against: str,
    group: Group,
    kinds: tuple[str, ...] = ("subject",),
    version: int = 1,
) -> Callable[[Callable[[Sample], Measured]], Callable[[Sample], Measured]]:
    """Register the decorated function under a name of `DIRECTIONS`; its docstring's first line is the metric's meaning."""

    def register(function: Callable[[Sample], Measured]) -> Callable[[Sample], Measured]:
        assert name not in REGISTRY, f"metric {name!r} is registered twice"
        meaning = (function.__doc__ or "").strip().splitlines()[0]
        REGISTRY[name] = Metric(
            name, DIRECTIONS[name], unit, against, meaning, group, frozenset(kinds), version, function
        )
        return function

    return register


def measure(of: Metric, sample: Sample) -> Measured:
    """Measure one metric on one image; prompts of another kind give a null that says so."""
    if sample.point.kind not in of.kinds:
        return not_measured(f"not_applicable: {of.name} is not measured on {sample.point.kind} prompts")
    return of.measure(sample)
