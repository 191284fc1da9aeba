"""The load generator of `convoy bench`: its client processes, and the evaluation of their findings."""
