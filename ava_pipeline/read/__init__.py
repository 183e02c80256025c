"""Read one run, in any process: its tables, predictions, manifest and status."""
