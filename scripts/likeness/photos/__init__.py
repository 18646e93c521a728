"""Read photos and pairs: formats, listing, hashes, the index of every file found."""
