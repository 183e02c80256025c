"""An HTML page of one or several runs: findings, plots, tables and facts."""
