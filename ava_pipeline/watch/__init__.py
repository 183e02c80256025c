"""A running job in the terminal: only what is new is read."""
