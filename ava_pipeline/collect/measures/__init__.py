"""One file a measure: its table, its device vector, and the rows made of it."""
