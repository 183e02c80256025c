"""One HTML page of one run or of several: findings, plots, tables, facts."""
