"""Pictures of any size, read in windows, and what is written of them in strips."""
