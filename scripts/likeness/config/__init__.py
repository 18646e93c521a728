"""Settings: typed models, layers, and errors with file and line."""
