"""One page that shows what was done and whether it helped."""
