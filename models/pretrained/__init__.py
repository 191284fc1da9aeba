"""Weights that other libraries saved, read without those libraries."""
