"""What lies on disk: all that writers and readers share."""
