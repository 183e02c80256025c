"""The background thread: from pending rows to files."""
