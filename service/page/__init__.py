"""The files of the page at `/`: data, no code."""
