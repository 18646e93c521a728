"""Decide which samples each phase trains on, and say why for every other."""
