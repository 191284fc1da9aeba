"""The load generator: the processes that `convoy bench` sends requests from, and what it makes of their findings."""
