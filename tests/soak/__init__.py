"""A long test: rows are fed for a time while the disk fails at random and processes are killed."""
