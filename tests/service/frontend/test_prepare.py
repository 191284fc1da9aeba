"""Which images of a request share a slot."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.frontend.prepare import Chunk, chunks
from convoy.service.metadata import InputSpec
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import input_size

FIXED = InputSpec(colour="RGB", height=8, width=8)
FREE = InputSpec(colour="L", fit="pad", multiple=4)


def raw(height: int, width: int, channels: int, nbytes: int | None = None) -> pb.Image:
    pixels = bytes(height * width * channels if nbytes is None else nbytes)
    return pb.Image(raw=pb.RawImage(pixels=pixels, height_px=height, width_px=width, channels=channels))


def found(
    images: list[pb.Image], spec: InputSpec = FIXED, batch_size: int = 32, max_pixels: int = 10**6
) -> list[Chunk]:
    return chunks(images, {}, spec.channels, partial(input_size, spec), max_pixels, batch_size)


@pytest.mark.parametrize(
    ("images", "batch_size", "counts"),
    [
        (1, 32, [1]),
        (32, 32, [32]),
        (64, 32, [32, 32]),
        (20, 32, [16, 4]),
        (31, 32, [16, 8, 4, 3]),
        (3, 32, [3]),
        (5, 1, [1, 1, 1, 1, 1]),
        (5, 3, [3, 2]),
        (7, 6, [6, 1]),
    ],
)
def test_images_go_in_whole_batches_and_halves_of_them(images: int, batch_size: int, counts: list[int]) -> None:
    assert [len(chunk.images) for chunk in found([raw(8, 8, 3)] * images, batch_size=batch_size)] == counts


@given(st.lists(st.tuples(st.sampled_from([4, 8, 12]), st.sampled_from([4, 6, 8])), min_size=1), st.integers(1, 40))
def test_every_image_is_in_one_chunk_of_its_own_size(sizes: list[tuple[int, int]], batch_size: int) -> None:
    images = [raw(height, width, 1) for height, width in sizes]
    together = found(images, FREE, batch_size)
    assert sorted(number for chunk in together for number in chunk.numbers) == list(range(len(images)))
    for chunk in together:
        assert len(chunk.numbers) == len(chunk.images) <= (1 if chunk.size is None else batch_size)
        for number, image in zip(chunk.numbers, chunk.images, strict=True):
            assert image == images[number]
            assert chunk.size in (None, sizes[number])
            assert (chunk.size is None) == (sizes[number][1] == 6)


@pytest.mark.parametrize(
    "image",
    [
        pb.Image(),
        pb.Image(encoded=b"\xff\xd8\xff"),
        raw(8, 8, 1),  # other colours
        raw(16, 16, 3),  # to be resized
        raw(8, 8, 3, nbytes=191),
        raw(0, 8, 3, nbytes=192),
    ],
)
def test_what_needs_work_or_is_wrong_goes_alone(image: pb.Image) -> None:
    first, second = sorted(found([raw(8, 8, 3), image, raw(8, 8, 3)]), key=lambda chunk: len(chunk.images))
    assert (first.numbers, first.size) == ((1,), None)
    assert (second.numbers, second.size) == ([0, 2], (8, 8))


def test_more_pixels_than_are_allowed_are_refused_where_images_are_decoded() -> None:
    assert found([raw(8, 8, 3)], max_pixels=63)[0].size is None
    assert found([raw(8, 8, 3)], max_pixels=64)[0].size == (8, 8)


def test_pixels_that_are_not_in_the_message_count() -> None:
    image = pb.Image(raw=pb.RawImage(height_px=8, width_px=8, channels=3))
    payload = memoryview(np.full(192, 7, np.uint8).tobytes())
    (chunk,) = chunks([image], {0: payload}, 3, lambda *size: size, 10**6, 32)
    assert chunk.size == (8, 8)
    assert chunk.pixels[0] is payload
