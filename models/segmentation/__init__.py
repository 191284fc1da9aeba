"""Architectures for per-pixel segmentation: one file per paper."""
