"""Many runs at once: their tables as datasets, and a list with one run per line."""
