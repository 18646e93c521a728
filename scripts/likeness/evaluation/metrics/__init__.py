"""Metrics of generated images; importing this package registers all of them."""

from likeness.evaluation.metrics import identity, perceptual, pixels
from likeness.evaluation.metrics.registry import REGISTRY, Measured, Metric, measure, not_measured

__all__ = [
    "REGISTRY",
    "Measured",
    "Metric",
    "identity",
    "lower_is_better",
    "measure",
    "not_measured",
    "perceptual",
    "pixels",
]


def lower_is_better(name: str) -> bool:
    """Whether smaller values of a metric are better; unknown names count as higher is better."""
    return name in REGISTRY and REGISTRY[name].direction in ("lower", "near 0")
