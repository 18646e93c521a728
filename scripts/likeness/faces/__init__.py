"""Faces: who is in a photo, where, turned how, and which of them is the subject."""
