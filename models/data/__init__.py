"""Data sets: images as they are served (uint8), their targets, and what a served file must say about them."""
