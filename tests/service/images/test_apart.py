"""Decoding in a process apart: the same pixels, and errors instead of deaths."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from convoy.service.errors import BadImage
from convoy.service.images.apart import Apart, Died
from convoy.service.images.decode import decode
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import reduction
from tests.service.test_vision import encoded

SPEC = InputSpec(colour="RGB", height=32, width=32)
LIMIT = 1_000_000
PICTURE = encoded(np.random.default_rng(1).integers(0, 256, (150, 200, 3), np.uint8), "JPEG")


@pytest.fixture
def apart() -> Iterator[Apart]:
    found = Apart()
    yield found
    found.end()


def test_pixels_are_the_same_as_in_this_process(apart: Apart) -> None:
    for spec in (SPEC, InputSpec(colour="L", fit="pad", multiple=4)):
        there = apart.decode(PICTURE, spec, LIMIT)
        here = decode(PICTURE, spec.colour, LIMIT, partial(reduction, spec))
        assert (there.height, there.width) == (here.height, here.width) == (150, 200)
        np.testing.assert_array_equal(there.pixels, here.pixels)


def test_refusal_is_the_same_as_in_this_process(apart: Apart) -> None:
    for data in (b"GIF89a", PICTURE[:-100], b""):
        with pytest.raises(BadImage) as here:
            decode(data, "RGB", LIMIT)
        with pytest.raises(BadImage) as there:
            apart.decode(data, SPEC, LIMIT)
        assert there.value.message == here.value.message


def pid(apart: Apart) -> int:
    assert apart._process is not None
    return apart._process.pid


def test_death_is_an_error_and_the_next_picture_is_decoded(apart: Apart) -> None:
    apart.decode(PICTURE, SPEC, LIMIT)
    os.kill(pid(apart), signal.SIGSEGV)
    with pytest.raises(Died, match="it ended with SIGSEGV"):
        apart.decode(PICTURE, SPEC, LIMIT)
    assert apart.decode(PICTURE, SPEC, LIMIT).width == 200


def test_decoder_that_hangs_is_ended(apart: Apart) -> None:
    apart.decode(PICTURE, SPEC, LIMIT)
    hanging = pid(apart)
    os.kill(hanging, signal.SIGSTOP)
    with pytest.raises(Died, match="it did not come to an end"):
        apart.decode(PICTURE, SPEC, LIMIT, seconds=0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert apart.decode(PICTURE, SPEC, LIMIT).width == 200
