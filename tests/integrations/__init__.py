"""Frameworks and trackers, with the real libraries."""
