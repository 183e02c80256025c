"""A long test: rows are written while the disk fails at random and processes are killed."""
