"""Plain implementations of what Convoy has tuned by hand, to measure what the tuning is worth."""
