"""Data sets: images as served (uint8), their targets, and the metadata of an exported file."""
