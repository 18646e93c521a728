"""Write captions, lint them, repair them, and read hand edits back."""
