"""Size limits of images."""

from convoy.service.errors import BadImage

MAX_SIDE = 65_535  # JPEG's own limit


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises BadImage unless both sides are 1 to 65535 and the image has at most `max_pixels` pixels."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise BadImage(f"image is {width}x{height} pixels, want 1 to {MAX_SIDE} a side")
    if height * width > max_pixels:
        raise BadImage(f"image is {width}x{height} = {height * width} pixels, want at most {max_pixels}")
