"""Training: settings, the loop with Lightning, and the files of a run."""
