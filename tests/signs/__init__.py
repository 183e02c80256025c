"""The warning signs."""
