"""Train a LoRA by flow matching on cached latents and embeddings."""
