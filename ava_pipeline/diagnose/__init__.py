"""What a run's numbers say."""
