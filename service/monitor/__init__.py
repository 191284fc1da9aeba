"""Watches a running server from outside, by its metrics. Needs the packages of the client only."""
