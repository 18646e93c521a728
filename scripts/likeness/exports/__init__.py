"""Render datasets and configs that other trainers accept unchanged."""
