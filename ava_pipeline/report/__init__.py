"""One HTML page of one run or several: findings, plots, tables and facts."""
