"""The rules of a run directory, one file a family."""
