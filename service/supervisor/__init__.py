"""Starts, watches, restarts and drains the server's processes."""
