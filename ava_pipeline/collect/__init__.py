"""The training thread: from gradients to a pending row."""
