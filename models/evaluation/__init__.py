"""How good a network or a file is on held-out images: what answers, what is measured, score by score."""
