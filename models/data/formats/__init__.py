"""Readers of users' own data, one module per file layout."""
