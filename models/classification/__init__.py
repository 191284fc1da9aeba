"""Architectures for image classification: one file per paper."""
