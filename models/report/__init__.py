"""Reports of finished runs, and comparisons of runs."""
