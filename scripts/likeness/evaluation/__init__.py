"""Draw images for every checkpoint, measure them, choose one, publish it."""
