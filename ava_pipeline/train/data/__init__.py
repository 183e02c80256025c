"""Labels and images of AVA, from files to batches."""
