"""Many runs at once: as tables, and as a line each."""
