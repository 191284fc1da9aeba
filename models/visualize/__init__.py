"""Visualisation of networks."""
