"""How good answers are, score by score."""
