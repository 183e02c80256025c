"""Judges a run: reads its tables, applies the signs of `signs/` to all rows, and prints the verdict."""
