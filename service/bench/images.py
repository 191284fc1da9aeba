"""The images of a load test: from a folder, or generated."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from convoy.service.client.requests import read_image
from convoy.service.commands.masks import png
from convoy.service.errors import BadConfig

_DISTINCT = 16  # generated images: enough to defeat caches
_SUFFIXES = (".jpeg", ".jpg", ".png")


def from_folder(folder: Path) -> list[bytes]:
    """The unchanged JPEG and PNG files of a folder, by name. Raises BadConfig if there are none."""
    if not folder.is_dir():
        raise BadConfig(f"{str(folder)!r} is not a folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise BadConfig(f"folder {str(folder)!r} holds no JPEG or PNG file")
    return [read_image(path) for path in paths]


def generated(colour: str, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """PNG files of that colour (L or RGB), with those sizes (height, width) in turn, the same at every call.

    Soft blotches with a little noise: their file sizes are similar to photographs'.
    """
    random = np.random.default_rng(0)
    count = max(_DISTINCT, len(sizes))
    return [_blotches(random, *sizes[place % len(sizes)], colour) for place in range(count)]


def _blotches(random: np.random.Generator, height: int, width: int, mode: str) -> bytes:
    channels = 1 if mode == "L" else 3
    coarse = random.integers(0, 256, (max(2, height // 32), max(2, width // 32), channels), np.uint8)
    soft = PIL.Image.fromarray(coarse.squeeze()).resize((width, height), PIL.Image.Resampling.BICUBIC)
    noise = random.normal(0, 3, np.asarray(soft).shape)
    return png(PIL.Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)))
