"""Small runs as each schema version wrote them, and the script that writes those of the current version."""
