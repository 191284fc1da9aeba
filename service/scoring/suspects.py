"""Pictures that may have ended a run: they were being decoded when its process ended, and are decoded apart afterwards.

A decoder that crashes takes the run along, and the next run would come to the same picture. So each process marks what
it decodes in a file of its own, which outlives it. A picture that ends the process that decodes it alone is refused.
"""

import atexit
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convoy.service.frontend.decoder import Decoder
from convoy.service.ipc.messages import Pictures
from convoy.service.ipc.pulse import Pulse

_PREFIX = ".decoding-"
_BYTES = 1 << 16  # of the file: more than a pulse has


class _Unmarked:
    def mark(self, thread: int, digest: bytes) -> None:
        """See Marks: there is no folder in which a mark would be found."""


def decoder(folder: str) -> Decoder:
    """A decoder that knows the suspects of earlier processes of a run; without a folder, there are none."""
    if not folder:
        return Decoder(_Unmarked(), _nothing)
    suspects = tuple((digest, math.inf) for file in _files(Path(folder)) for digest in _marked(file))
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
    os.ftruncate(descriptor, _BYTES)
    found = Decoder(Pulse(descriptor), _nothing)
    os.close(descriptor)
    atexit.register(Path(name).unlink, missing_ok=True)
    found.learn(Pictures(suspects=suspects))
    return found


def forget(folder: Path) -> None:
    """Removes the marks of a run that is complete."""
    for file in _files(folder):
        file.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    return folder.glob(f"{_PREFIX}*")


def _marked(file: Path) -> list[bytes]:
    """The digests of what a process decodes, or decoded when it ended."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # it has just ended
        return []
    try:
        return Pulse(descriptor).decoding if os.fstat(descriptor).st_size == _BYTES else []
    finally:
        os.close(descriptor)


def _nothing(digest: bytes, until: float) -> None:
    """A picture that is refused is one of a run: nobody else needs to know."""
