"""The metrics of predictions on disk, how sure they are, and how two sets of predictions compare."""
