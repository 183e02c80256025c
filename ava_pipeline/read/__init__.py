"""Afterwards, in any process: files -> answers."""
