"""Decodes the pictures of requests: in the threads of the front end, and those under suspicion in a process apart.

A decoder that crashes takes its process along. So each picture is marked, in memory that outlives the process, while it
is decoded. When a front end ends while it decodes, the supervisor tells the others, and its successor, which pictures
these were. They are decoded apart from then on. One that ends that process, too, is refused.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from convoy.service.errors import BadImage
from convoy.service.images.apart import Apart, Died
from convoy.service.images.decode import Picture, decode
from convoy.service.ipc.messages import Pictures
from convoy.service.ipc.pulse import DIGEST
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import reduction

log = logging.getLogger(__name__)

REFUSED_SECONDS = 600.0
_DEADLY = "image ends the process that decodes it: it is refused"


class Marks(Protocol):
    """Where a process shows what it decodes: see Pulse."""

    def mark(self, thread: int, digest: bytes) -> None:
        """Shows that a thread decodes a picture; b"": none."""


class Decoder:
    """The decoder of a front end.

    Its threads call `decode`, each with its own number. One writer of what is known about pictures: the loop; a thread
    that finds one guilty reports it there.
    """

    def __init__(self, marks: Marks, on_guilty: Callable[[bytes, float], None]) -> None:
        """`on_guilty` is called in a thread, with the digest of a picture that is to be refused, and until when."""
        self._marks = marks
        self._on_guilty = on_guilty
        self._suspects: dict[bytes, float] = {}  # digest -> until when it is decoded apart
        self._guilty: dict[bytes, float] = {}  # digest -> until when it is refused
        self._apart_until = 0.0  # every picture is decoded apart until then
        self._apart: dict[int, Apart] = {}  # by thread

    def learn(self, pictures: Pictures) -> None:
        """Records what other front ends have found out, or have died of."""
        now = time.monotonic()
        known = {**self._suspects, **dict(pictures.suspects)}
        self._suspects = {digest: until for digest, until in known.items() if until > now}
        known = {**self._guilty, **dict(pictures.guilty)}
        self._guilty = {digest: until for digest, until in known.items() if until > now}
        self._apart_until = max(self._apart_until, pictures.apart_until)

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, thread: int) -> Picture:
        """Returns a picture for a network's input. Raises BadImage."""
        digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
        now = time.monotonic()
        if self._guilty.get(digest, 0.0) > now:
            raise BadImage(_DEADLY)
        if self._apart_until > now or self._suspects.get(digest, 0.0) > now:
            return self._decode_apart(data, digest, spec, max_pixels, thread)
        self._marks.mark(thread, digest)
        try:
            return decode(data, spec.colour, max_pixels, partial(reduction, spec))
        finally:
            self._marks.mark(thread, b"")

    def _decode_apart(self, data: bytes, digest: bytes, spec: InputSpec, max_pixels: int, thread: int) -> Picture:
        try:
            return self._apart.setdefault(thread, Apart()).decode(data, spec, max_pixels)
        except Died as death:
            log.error("a picture of %d bytes ends the process that decodes it, and is refused: %s", len(data), death)
            self._on_guilty(digest, time.monotonic() + REFUSED_SECONDS)
            raise BadImage(_DEADLY) from None
