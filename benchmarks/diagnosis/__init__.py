"""How much of what goes wrong is found: labelled trainings, and the table made of them."""
