"""Metrics of predictions on disk, their intervals, and the comparison of two sets of predictions."""
