"""The background thread: pending rows -> files."""
