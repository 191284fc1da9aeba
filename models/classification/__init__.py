"""Architectures that answer an image with ranked labels: one file per paper."""
