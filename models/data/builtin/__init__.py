"""Data sets that are made or bundled: nothing has to be downloaded."""
