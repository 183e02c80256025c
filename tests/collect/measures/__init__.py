"""Tests of the built-in measures."""
