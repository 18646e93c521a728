"""Measure photos and pairs; decide nothing."""
