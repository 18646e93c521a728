"""Metrics of generated images; importing this package registers all of them."""

from likeness.evaluation.metrics import identity, perceptual, pixels
from likeness.evaluation.metrics.registry import REGISTRY, Measured, Metric, measure, not_measured

__all__ = [
    "REGISTRY",
    "Measured",
    "Metric",
    "identity",
    "measure",
    "not_measured",
    "perceptual",
    "pixels",
]
