"""What is on disk: everything that writers and readers share."""
