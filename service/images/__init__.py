"""Image files to pixels, the same for serving and training."""
