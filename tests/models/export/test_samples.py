"""Pictures beside an exported file: of different classes, small, and as they are."""

import io

import numpy as np
import pytest
from PIL import Image

from convoy.models.export import samples
from convoy.service.samples import MOST_BYTES


class Pictures:
    """Pictures of one class, except for one."""

    def __init__(self, length: int, other: int) -> None:
        self.length, self.other = length, other

    def __len__(self) -> int:
        return self.length

    def size(self, index: int) -> tuple[int, ...]:
        return 8, 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((8, 8, 1), index % 256, np.uint8), int(index == self.other)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("length", "other", "places"),
    [(0, 0, []), (1, 0, [0]), (10, 7, [0, 7]), (10, 99, [0, 5]), (1000, 900, [0, 500])],
)
def test_second_picture_is_of_another_class_if_one_is_near(length: int, other: int, places: list[int]) -> None:
    assert samples._places(Pictures(length, other)) == places


@pytest.mark.parametrize("channels", [1, 3])
def test_small_picture_stays_as_it_is(channels: int) -> None:
    pixels = np.arange(8 * 9 * channels, dtype=np.uint8).reshape(8, 9, channels)
    ((name, data),) = samples.named([pixels]).items()
    assert name == "samples/1.png"
    assert (decoded(data).reshape(pixels.shape) == pixels).all()


def test_large_picture_becomes_a_jpeg_that_is_small_enough() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (600, 900, 3), np.uint8)
    ((name, data),) = samples.named([noise]).items()
    assert name == "samples/1.jpg"
    assert len(data) <= MOST_BYTES
    height, width, _ = decoded(data).shape
    assert abs(width / height - 1.5) < 0.05


def test_picture_that_cannot_be_made_small_is_left_out() -> None:
    line = np.zeros((1, 60_000, 3), np.uint8)
    line[...] = np.random.default_rng(1).integers(0, 256, line.shape)
    small = np.zeros((4, 4, 3), np.uint8)
    assert list(samples.named([line, small])) == ["samples/1.png"]
