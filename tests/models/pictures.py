"""A folder of small pictures of three kinds, as somebody would bring their own."""

from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 31, "validation": 11, "test": 6}


def draw(root: Path, classes: tuple[str, ...] = ("across", "down", "dots"), colour: bool = False) -> Path:
    """`root/split/class/number.png`: stripes across, stripes down, dots; with noise, 32x32, grey or RGB."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:32, :32] // 4 % 2
    shapes = [y, x, y & x]
    for split, count in COUNTS.items():
        for number in range(count):
            kind = number % len(classes)
            folder = root / split / classes[kind]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = 60 + 120 * shapes[kind][..., None] + random.normal(0, 25, (32, 32, 3 if colour else 1))
            image = np.clip(pixels, 0, 255).astype(np.uint8)
            Image.fromarray(image if colour else image[..., 0]).save(folder / f"{number:03}.png")
    return root
