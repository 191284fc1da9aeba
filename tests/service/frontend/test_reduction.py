"""Large photographs are decoded at a half or a quarter of their size, and reach the input as if they had not been."""

import io
import struct
import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from convoy.service.images.decode import Picture, decode, whole
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import Placement, input_size, preprocess, reduction

LIMIT = 50_000_000
TURNS = range(1, 9)  # EXIF's orientations
NEAR = 2.5  # of 255: mean difference of the pixels at the input

Pixels = NDArray[np.uint8]


@cache
def photograph(height: int, width: int, colour: str = "RGB", turned: int = 1, **options: object) -> bytes:
    """A JPEG file whose frequencies fall off as nature's do, with some sharp edges and a camera's noise."""
    random = np.random.default_rng(height * 7919 + width)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / max(height, width)) ** 1.5
    planes = []
    for _ in range(3):
        plane = np.fft.irfft2(falling * np.exp(2j * np.pi * random.random(falling.shape)), (height, width))
        planes.append(128 + 45 * plane / plane.std())
    image = np.stack(planes, 2)
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        inside = np.hypot((y - random.uniform(0, height)) / height, (x - random.uniform(0, width)) / width) < 0.1
        image[inside] = 0.4 * image[inside] + 0.6 * random.uniform(0, 255, 3)
    image += random.normal(0, 2, image.shape)
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).convert(colour)
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, turned, 0, 0)
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 90, "exif": exif, **options})
    return file.getvalue()


def spec(fit: str, height: int | None, width: int | None, **more: object) -> InputSpec:
    return InputSpec(**{"colour": "RGB", "height": height, "width": width, "fit": fit, **more})  # type: ignore[arg-type]


def at_input(data: bytes, spec: InputSpec, factor: Callable[[int, int], int]) -> tuple[Pixels, Placement, Picture]:
    picture = decode(data, spec.colour, LIMIT, factor)
    out = np.zeros((*input_size(spec, picture.height, picture.width), spec.channels), np.uint8)
    return out, preprocess(picture.pixels, spec, out, (picture.height, picture.width)), picture


def difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other).mean())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "fit", "factor"),
    [
        ((223, 223), "stretch", 1),
        ((224, 224), "stretch", 2),
        ((224, 223), "stretch", 1),
        ((301, 447), "stretch", 2),
        ((448, 448), "stretch", 4),
        ((447, 1200), "stretch", 2),
        ((1001, 1503), "stretch", 4),
        ((224, 300), "crop", 2),
        ((700, 449), "crop", 4),
        ((223, 223), "letterbox", 1),
        ((150, 224), "letterbox", 2),
        ((702, 451), "letterbox", 4),
    ],
)
def test_photograph_decoded_small_reaches_the_input_as_the_whole_one_does(
    size: tuple[int, int], fit: str, factor: int, interpolation: str
) -> None:
    data, taken = photograph(*size), spec(fit, 112, 112, interpolation=interpolation)
    small, placed, picture = at_input(data, taken, partial(reduction, taken))
    full, placed_full, _ = at_input(data, taken, whole)
    assert picture.pixels.shape[:2] == (-(-size[0] // factor), -(-size[1] // factor))
    assert (picture.height, picture.width) == size
    assert placed == placed_full
    assert difference(small, full) <= (NEAR if factor > 1 else 0)


@pytest.mark.parametrize("size", [(224, 224), (260, 250)])
def test_a_wrong_factor_and_a_wrong_place_are_told_from_the_right_ones(size: tuple[int, int]) -> None:
    data, taken = photograph(*size), spec("stretch", 112, 112)
    full, _, _ = at_input(data, taken, whole)
    assert reduction(taken, *size) == 2
    wrong, _, _ = at_input(data, taken, lambda height, width: 4)
    assert difference(wrong, full) > NEAR
    small, _, _ = at_input(data, taken, partial(reduction, taken))
    assert difference(np.roll(small, 1, axis=1), full) > NEAR


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("size", [(448, 640), (449, 641), (450, 642)])
def test_photograph_is_turned_and_in_its_place(turned: int, size: tuple[int, int]) -> None:
    data, taken = photograph(*size, turned=turned), spec("letterbox", 112, 112)
    small, placed, _ = at_input(data, taken, partial(reduction, taken))
    full, placed_full, _ = at_input(data, taken, whole)
    assert placed == placed_full
    assert difference(small, full) <= NEAR
    upside_down, _, _ = at_input(photograph(*size, turned=(turned + 1) % 8 + 1), taken, partial(reduction, taken))
    assert difference(upside_down, full) > NEAR


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"subsampling": 2}])
def test_every_kind_of_photograph_is_made_smaller(mode: str, colour: str, options: dict[str, object]) -> None:
    data, taken = photograph(480, 700, mode, **options), spec("stretch", 112, 112, colour=colour)
    small, _, picture = at_input(data, taken, partial(reduction, taken))
    full, _, _ = at_input(data, taken, whole)
    rare = mode == "CMYK" and options == {"subsampling": 2}  # no decoder of ours makes these smaller
    assert picture.pixels.shape[:2] == ((480, 700) if rare else (120, 175))
    assert difference(small, full) <= NEAR


@pytest.mark.parametrize("taken", [spec("pad", None, None), spec("stretch", 112, 112, interpolation="nearest")])
def test_what_wants_the_very_pixels_gets_them(taken: InputSpec) -> None:
    small, _, picture = at_input(photograph(448, 448), taken, partial(reduction, taken))
    full, _, _ = at_input(photograph(448, 448), taken, whole)
    assert picture.pixels.shape[:2] == (448, 448)
    assert (small == full).all()


SIDES = st.integers(1, 300)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 70), st.integers(1, 70), st.sampled_from(["stretch", "crop", "letterbox"]))
def test_no_picture_is_made_smaller_than_what_it_is_resized_to(
    height: int, width: int, to_height: int, to_width: int, fit: str
) -> None:
    taken = spec(fit, to_height, to_width)
    factor = reduction(taken, height, width)
    image = np.zeros((-(-height // factor), -(-width // factor), 3), np.uint8)
    placed = preprocess(image, taken, np.zeros((to_height, to_width, 3), np.uint8), (height, width))
    assert (placed.source_height, placed.source_width) == (height, width)
    if factor > 1:
        assert height >= factor * placed.height
        assert width >= factor * placed.width
    if factor < 4:
        assert height < 2 * factor * placed.height or width < 2 * factor * placed.width


def cpu_seconds(*calls: Callable[[], object]) -> list[float]:
    """The least that each takes, in turn: what slows the machine down for a while concerns all of them."""
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(7):
        for call, seconds in zip(calls, took, strict=True):
            began = time.thread_time()
            call()
            seconds.append(time.thread_time() - began)
    return [min(seconds) for seconds in took]


@pytest.mark.parametrize("side", [448, 896])
def test_small_is_faster(side: int) -> None:
    data, taken = photograph(side, side), spec("stretch", 224, 224)
    small, full = cpu_seconds(
        lambda: at_input(data, taken, partial(reduction, taken)), lambda: at_input(data, taken, whole)
    )
    assert small < full / 1.5
