"""Free the store of what no current result needs."""
