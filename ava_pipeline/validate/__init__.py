"""A run directory against its contract."""
