"""Pictures that are published beside a model file, for people who want to try the model."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.models.checkpoint import Description
from convoy.models.data.dataset import Split
from convoy.service.samples import FOLDER, MOST_BYTES

WANTED = 2
_LOOKED_AT = 64  # pictures, for one of another class
_QUALITY = 90
_LEAST_SIDE = 16  # pixels: smaller pictures show nothing


def held_out(description: Description) -> dict[str, bytes]:
    """Returns two held-out pictures as files, by their names in the version's folder, of different classes where the
    data have some; none if the network does not accept pictures or has no data here."""
    if not description.data or description.input is None:
        return {}
    split = description.held_out()
    return named([np.asarray(split[place][0]) for place in _places(split)])


def named(pictures: list[NDArray[np.uint8]]) -> dict[str, bytes]:
    """Returns pictures (H, W, C) as files of at most 64 kB: PNG, or JPEG where that is too large."""
    files: dict[str, bytes] = {}
    for pixels in pictures:
        if (file := _file(pixels)) is not None:
            suffix, data = file
            files[f"{FOLDER}/{len(files) + 1}{suffix}"] = data
    return files


def _places(split: Split) -> list[int]:
    if len(split) < WANTED:
        return list(range(len(split)))
    _, first = split[0]
    if not isinstance(first, np.ndarray):
        for place in range(1, min(len(split), _LOOKED_AT)):
            if split[place][1] != first:
                return [0, place]
    return [0, len(split) // 2]


def _file(pixels: NDArray[np.uint8]) -> tuple[str, bytes] | None:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    data = _encoded(image, "PNG", optimize=True)
    if len(data) <= MOST_BYTES:
        return ".png", data
    while min(image.size) >= _LEAST_SIDE:
        data = _encoded(image, "JPEG", quality=_QUALITY)
        if len(data) <= MOST_BYTES:
            return ".jpg", data
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    return None


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
