"""A drawn world and its tiny models, in which identity can be learned and measured on a CPU."""
