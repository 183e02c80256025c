"""Checks a run directory against its contract."""
