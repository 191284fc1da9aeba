"""Users' own data, one module for each layout of files."""
