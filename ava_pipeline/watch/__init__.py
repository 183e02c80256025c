"""Follow a running job in the terminal; only new rows are read."""
