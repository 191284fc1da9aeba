"""Pretrained weights in other libraries' files, read without those libraries."""
