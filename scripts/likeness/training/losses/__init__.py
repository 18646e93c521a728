"""The losses, one small object each, and the sum of them that a training optimises."""
