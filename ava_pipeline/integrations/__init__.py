"""Frameworks that train, and trackers that show runs: each file needs only its own library, and only when imported."""
