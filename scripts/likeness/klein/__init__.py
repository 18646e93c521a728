"""The FLUX.2 [klein] model family: load, encode text and image, position ids, targets, sample."""
