"""The training thread: gradients -> one pending row."""
