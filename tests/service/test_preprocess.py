"""How an image reaches the input of a network, and how a mask comes back to the image."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from convoy.service.buckets import Buckets
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import Placement, input_size, preprocess, restore

UNTOUCHED = 201
SIDES = st.integers(1, 70)


def spec(fit: str, height: int | None = None, width: int | None = None, **more: object) -> InputSpec:
    return InputSpec(**{"colour": "RGB", "height": height, "width": width, "fit": fit, **more})  # type: ignore[arg-type]


def fitted(image: NDArray[np.uint8], spec: InputSpec) -> tuple[NDArray[np.uint8], Placement]:
    out = np.full((*input_size(spec, *image.shape[:2]), spec.channels), UNTOUCHED, np.uint8)
    return out, preprocess(image, spec, out)


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    # None of it is the number that marks bytes which were never written.
    return np.random.default_rng(7).integers(0, UNTOUCHED, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_of_the_right_size_arrives_unchanged(fit: str, channels: int) -> None:
    image = noise(20, 30, channels)
    out, _ = fitted(image, spec(fit, 20, 30, colour="L" if channels == 1 else "RGB"))
    assert (out == image).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(7, 90), (90, 7), (11, 13), (200, 150)])
def test_stretch_is_pillows_resize(interpolation: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    out, _ = fitted(image, spec("stretch", 32, 48, interpolation=interpolation))
    expected = Image.fromarray(image).resize((48, 32), Image.Resampling[interpolation.upper()])
    assert (out == np.asarray(expected)).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(60, 100), (100, 60), (33, 32), (10, 11), (500, 20)])
def test_crop_covers_the_input_and_cuts_the_middle_out(interpolation: str, size: tuple[int, int]) -> None:
    image = 90 + noise(*size) // 4  # grey enough that no filter's overshoot is clipped between Pillow's two passes
    out, _ = fitted(image, spec("crop", 32, 32, interpolation=interpolation))
    height, width = size
    scale = max(Fraction(32, height), Fraction(32, width))
    covered = (floor(width * scale + Fraction(1, 2)), floor(height * scale + Fraction(1, 2)))
    whole = np.asarray(Image.fromarray(image).resize(covered, Image.Resampling[interpolation.upper()]))
    top, left = -((32 - whole.shape[0]) // 2), -((32 - whole.shape[1]) // 2)
    assert np.abs(out.astype(int) - whole[top : top + 32, left : left + 32]).max() <= 1


def test_crop_leaves_the_middle_in_place_and_drops_the_ends() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (fitted(image, spec("crop", 10, 10))[0] == 255).all()


@pytest.mark.parametrize(
    ("size", "inside"),
    [
        ((40, 80), (slice(8, 24), slice(0, 32))),
        ((80, 40), (slice(0, 32), slice(8, 24))),
        ((5000, 1), (slice(0, 32), slice(15, 16))),
    ],
)
def test_letterbox_keeps_the_shape_and_fills_both_sides(size: tuple[int, int], inside: tuple[slice, slice]) -> None:
    out, _ = fitted(np.full((*size, 3), 200, np.uint8), spec("letterbox", 32, 32, fill=9))
    expected = np.full((32, 32, 3), 9, np.uint8)
    expected[inside] = 200
    assert (out == expected).all()


def test_pad_keeps_every_pixel_and_fills_right_and_bottom() -> None:
    image = noise(17, 30)
    out, placement = fitted(image, spec("pad", multiple=16, fill=9))
    assert out.shape == (32, 32, 3)
    assert (out[:17, :30] == image).all()
    assert (out[17:] == 9).all()
    assert (out[:, 30:] == 9).all()
    assert (restore(out[:, :, 0], placement) == image[:, :, 0]).all()


@settings(deadline=None)
@given(height=SIDES, width=SIDES, multiple=st.integers(1, 40))
def test_free_size_is_rounded_up_to_the_multiple(height: int, width: int, multiple: int) -> None:
    for side, padded in zip((height, width), input_size(spec("pad", multiple=multiple), height, width), strict=True):
        assert padded % multiple == 0
        assert side <= padded < side + multiple


def test_size_is_rounded_up_before_its_bucket_is_chosen() -> None:
    free = spec("pad", multiple=16, min_height=32)
    assert input_size(free, 17, 30, buckets=Buckets(((32, 32), (64, 64)))) == (32, 32)
    assert input_size(free, 33, 30, buckets=Buckets(((32, 32), (64, 64)))) == (64, 64)
    assert input_size(free, 65, 30, buckets=Buckets(((32, 32), (64, 64)))) == (80, 32)
    assert input_size(spec("stretch", 8, 8), 17, 30, buckets=Buckets(((32, 32),))) == (8, 8)


def test_what_a_bucket_has_beyond_the_image_is_the_fill() -> None:
    free, image = spec("pad", multiple=4, fill=9), noise(17, 30)
    out = np.full((*input_size(free, 17, 30, buckets=Buckets(((48, 64),))), 3), UNTOUCHED, np.uint8)
    placement = preprocess(image, free, out)
    expected = np.full((48, 64, 3), 9, np.uint8)
    expected[:17, :30] = image
    assert (out == expected).all()
    assert (restore(out[:, :, 0], placement) == image[:, :, 0]).all()


def test_small_image_is_padded_to_the_least_that_the_network_takes() -> None:
    least = spec("pad", min_height=24, min_width=9)
    assert input_size(least, 5, 30) == (24, 30)
    assert input_size(spec("pad", min_height=24, min_width=9, multiple=16), 30, 5) == (32, 16)
    out, placement = fitted(noise(5, 4), least)
    assert (restore(out[:, :, 0], placement) == noise(5, 4)[:, :, 0]).all()


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["stretch", "crop", "letterbox"]))
def test_every_byte_of_the_slot_is_written(height: int, width: int, to_height: int, to_width: int, fit: str) -> None:
    out, _ = fitted(noise(height, width), spec(fit, to_height, to_width, fill=3))
    assert (out != UNTOUCHED).all()


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["stretch", "crop", "letterbox"]))
def test_restored_pixel_is_the_one_its_centre_falls_into(
    height: int, width: int, to_height: int, to_width: int, fit: str
) -> None:
    _, placed = fitted(noise(height, width), spec(fit, to_height, to_width))
    # Each input pixel has a number of its own, in two maps because a byte does not hold it.
    rows, columns = np.indices((to_height, to_width), dtype=np.uint8)
    got_rows, got_columns = restore(rows, placed), restore(columns, placed)
    assert got_rows.shape == (height, width)

    def expected(source: int, offset: int, placed: int, limit: int) -> list[int]:
        centres = [offset + (i + Fraction(1, 2)) * Fraction(placed, source) for i in range(source)]
        return [min(max(floor(centre), 0), limit - 1) for centre in centres]

    assert got_rows[:, 0].tolist() == expected(height, placed.top, placed.height, to_height)
    assert got_columns[0].tolist() == expected(width, placed.left, placed.width, to_width)
    assert (got_rows == got_rows[:, :1]).all()
    assert (got_columns == got_columns[:1]).all()


@pytest.mark.parametrize(
    ("fit", "source", "target"),
    [
        ("stretch", (24, 36), (96, 72)),
        ("stretch", (23, 31), (97, 64)),
        ("letterbox", (20, 30), (64, 64)),
        ("letterbox", (30, 20), (64, 64)),
        ("letterbox", (64, 48), (64, 64)),
    ],
)
def test_class_map_that_was_enlarged_comes_back_exactly(
    fit: str, source: tuple[int, int], target: tuple[int, int]
) -> None:
    picture = noise(*source, 1)
    out, placement = fitted(picture, spec(fit, *target, colour="L", interpolation="nearest"))
    assert (restore(out[:, :, 0], placement) == picture[:, :, 0]).all()


@pytest.mark.parametrize(
    ("fit", "source"), [("stretch", (96, 160)), ("letterbox", (96, 192)), ("letterbox", (192, 96))]
)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_blocks_that_were_reduced_come_back_exactly(fit: str, source: tuple[int, int], interpolation: str) -> None:
    blocks = np.random.default_rng(3).integers(0, 2, (source[0] // 24, source[1] // 16), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((24, 16), np.uint8))[:, :, None] * 255
    out, placement = fitted(picture, spec(fit, 48, 80, colour="L", interpolation=interpolation))
    back = restore((out[:, :, 0] >= 128).astype(np.uint8) * 255, placement)
    # Where an input pixel straddles two blocks either answer is right: one pixel of the source next to an edge.
    away = np.ones(source, bool)
    for axis, side in ((0, 24), (1, 16)):
        edge = np.arange(source[axis]) % side
        near = (edge < 3) | (edge >= side - 3)
        away &= ~(near[:, None] if axis == 0 else near[None, :])
    assert (back == picture[:, :, 0])[away].all()


def edge_bias(target: int, source: int, shift: int = 0) -> float:
    """Mean of (edge that came back) - (edge of the picture), in source pixels, over many edges from black to white."""
    bias = []
    for edge in range(source // 4, 3 * source // 4):
        picture = np.zeros((1, source, 1), np.uint8)
        picture[:, edge:] = 255
        out, placement = fitted(picture, spec("stretch", 1, target, colour="L"))
        back = restore(np.roll(out[:, :, 0] >= 128, shift, axis=1).astype(np.uint8), placement)
        bias.append(int(np.argmax(back[0, source // 8 :])) + source // 8 - edge)
    return float(np.mean(bias))


@pytest.mark.parametrize(("target", "source"), [(64, 256), (64, 161), (128, 100), (256, 64)])
def test_edges_come_back_where_they_were(target: int, source: int) -> None:
    pixel = source / target
    assert abs(edge_bias(target, source)) <= max(0.25, 0.25 * pixel)
    # The measure sees a shift: one pixel of the input.
    assert abs(edge_bias(target, source, shift=1) - pixel) <= max(0.25, 0.25 * pixel)
