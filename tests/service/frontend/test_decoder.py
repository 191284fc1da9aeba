"""What a front end does with pictures that end, or may end, the process that decodes them."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest

from convoy.service.errors import BadImage
from convoy.service.frontend import decoder as module
from convoy.service.frontend.decoder import Decoder
from convoy.service.images.decode import Picture
from convoy.service.ipc.messages import Pictures
from convoy.service.ipc.pulse import DIGEST, Pulse, page
from convoy.service.metadata import InputSpec
from tests.service.test_vision import encoded, grey

SPEC = InputSpec(colour="L", height=8, width=8)
DATA = encoded(grey(1))
NAME = hashlib.blake2b(DATA, digest_size=DIGEST).digest()
LIMIT = 10_000


class Made:
    """A decoder, what it reports, and the pulse that others see."""

    def __init__(self) -> None:
        self.reported: list[bytes] = []
        descriptor = page()
        self.seen = Pulse(descriptor)
        self.decoder = Decoder(Pulse(descriptor), lambda digest, until: self.reported.append(digest))

    def decode(self, data: bytes = DATA) -> Picture:
        return self.decoder.decode(data, SPEC, LIMIT, thread=3)

    def end(self) -> None:
        for apart in self.decoder._apart.values():
            apart.end()


@pytest.fixture
def made() -> Iterator[Made]:
    found = Made()
    yield found
    found.end()


def test_picture_is_marked_while_it_is_decoded(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, seen = module.decode, []

    def watched(data: bytes, *others: object) -> Picture:
        seen.append(made.seen.decoding)
        return decode(data, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", watched)
    np.testing.assert_array_equal(made.decode().pixels[..., 0], grey(1))
    with pytest.raises(BadImage):
        made.decode(b"none")
    assert seen == [[NAME], [hashlib.blake2b(b"none", digest_size=DIGEST).digest()]]
    assert made.seen.decoding == []


@pytest.mark.parametrize("known", [Pictures(suspects=((NAME, math.inf),)), Pictures(apart_until=math.inf)])
def test_suspect_is_decoded_apart_and_never_marked(
    made: Made, monkeypatch: pytest.MonkeyPatch, known: Pictures
) -> None:
    monkeypatch.setattr(module, "decode", None)
    made.decoder.learn(known)
    np.testing.assert_array_equal(made.decode().pixels[..., 0], grey(1))
    assert made.reported == []


def test_only_the_suspect_is_decoded_apart(made: Made) -> None:
    made.decoder.learn(Pictures(suspects=((NAME, math.inf),)))
    made.decode(encoded(grey(2)))
    assert not made.decoder._apart


def test_guilty_picture_is_refused_until_its_time_is_over(made: Made) -> None:
    made.decoder.learn(Pictures(guilty=((NAME, math.inf),)))
    with pytest.raises(BadImage, match="ends the process that decodes it"):
        made.decode()
    made.decoder.learn(Pictures(guilty=((NAME, 0.0),)))
    np.testing.assert_array_equal(made.decode().pixels[..., 0], grey(1))
