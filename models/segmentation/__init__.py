"""Architectures that answer an image with a class per pixel: one file per paper."""
