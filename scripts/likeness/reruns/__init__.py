"""What the next run would do and why, said before it runs."""
