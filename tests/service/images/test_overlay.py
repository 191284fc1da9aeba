import numpy as np
import pytest

from convoy.service.images.overlay import overlay
from convoy.service.metadata import default_palette


@pytest.mark.parametrize("size", [(1, 1), (63, 5), (64, 3), (65, 7), (200, 1)])
def test_overlay_is_the_rounded_mean_of_the_image_and_the_colours(size):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (*size, 3), np.uint8)
    mask = random.integers(0, 21, size, np.uint8)
    palette = np.array(default_palette(21), np.uint8)
    expected = np.rint(0.5 * pixels + 0.5 * palette[mask]).astype(np.uint8)
    assert np.array_equal(overlay(pixels, mask, palette), expected)


def test_every_pair_of_values_is_rounded_as_numpy_rounds():
    values = np.arange(256, dtype=np.uint8)
    pixels = np.repeat(values[None, :, None], 256, 0).repeat(3, 2)
    palette = np.repeat(values[:, None], 3, 1)
    mask = np.repeat(values[:, None], 256, 1)
    expected = np.rint((pixels.astype(float) + palette[mask]) / 2).astype(np.uint8)
    assert np.array_equal(overlay(pixels, mask, palette), expected)
