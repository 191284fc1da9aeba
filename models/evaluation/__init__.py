"""Evaluation of a network or a file on held-out images: predictions, metrics and scores."""
