"""Tests against clients that nobody here wrote."""
