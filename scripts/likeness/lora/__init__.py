"""LoRA files: write them so that everybody can read them, read anybody's."""
