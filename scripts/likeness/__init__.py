"""Likeness: from a folder of photos to a chosen FLUX.2 [klein] LoRA.

The way of a photo is the way of the packages: photos, faces, masks, quality, captions, phases, exports; then klein,
lora, training, evaluation, report. A module imports only from packages to its left in its row and from config, store
and tables; miniature may use all and serves tests and the demo alone.
"""
