"""How many faults of trainings are found: labelled trainings and the table of results."""
