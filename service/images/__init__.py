"""Decoding of image files to pixels, the same for serving and training."""
