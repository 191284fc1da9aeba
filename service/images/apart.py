"""A process that decodes pictures under suspicion: one that a picture may end without harm to anybody else.

    python -m convoy.service.images.apart DESCRIPTOR

is that process. It ends when the socket with this descriptor closes.
"""

import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial

import msgspec
import numpy as np

from convoy.service.config import MIB
from convoy.service.errors import BadImage
from convoy.service.images.decode import Picture, decode
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import reduction

SECONDS = 30.0  # for one picture; the heaviest takes two on an idle core
_MEMORY = 4096 * MIB  # address space: eight times what the heaviest picture needs
_FILES = 32
_MESSAGE = 65_536  # bytes


class Died(Exception):
    """The process ended, or did not come to an end, while it decoded a picture."""


class _Request(msgspec.Struct, frozen=True):
    """The attached descriptor has the file."""

    nbytes: int
    max_pixels: int
    spec: InputSpec


class _Reply(msgspec.Struct, frozen=True):
    """`error` says why there is no picture; otherwise the attached descriptor has its pixels."""

    error: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    height: int = 0
    width: int = 0


class Apart:
    """The process, started with its first picture, and again after one that ended it. One user: a thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, seconds: float = SECONDS) -> Picture:
        """As decode.decode, for a network's input. Raises BadImage, Died, OSError if it cannot be started."""
        connection = self._socket or self._start()
        connection.settimeout(seconds)
        file = _memory_with(data)
        try:
            request = msgspec.json.encode(_Request(len(data), max_pixels, spec))
            socket.send_fds(connection, [request], [file])
            answer, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE, 1)
        except (ConnectionError, TimeoutError):
            answer, descriptors = b"", []
        finally:
            os.close(file)
        if not answer:
            raise Died(self.end())
        reply = msgspec.json.decode(answer, type=_Reply)
        if reply.error or not descriptors:
            raise BadImage(reply.error)
        try:
            pixels = np.frombuffer(mmap.mmap(descriptors[0], 0, prot=mmap.PROT_READ), np.uint8)
        finally:
            os.close(descriptors[0])
        return Picture(pixels.reshape(reply.shape), reply.height, reply.width)

    def end(self) -> str:
        """Ends the process. Returns how it had ended, if it had."""
        process, connection, self._process, self._socket = self._process, self._socket, None, None
        if process is None or connection is None:
            return "it was not running"
        connection.close()
        with suppress(subprocess.TimeoutExpired):  # of a process that is about to end, as its socket has closed
            process.wait(1.0)
        code = process.poll()
        if code is None:
            process.kill()
            process.wait()
            return "it did not come to an end"
        return f"it ended with {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        return ours


def _memory_with(data: bytes | memoryview) -> int:
    descriptor = os.memfd_create("convoy-picture", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def _serve(connection: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE, 1)
        if not message:
            return
        request = msgspec.json.decode(message, type=_Request)
        with os.fdopen(descriptors[0], "rb", buffering=0) as file:
            file.seek(0)
            data = file.read(request.nbytes)
        reply, pixels = _answer(data, request)
        descriptor = [] if pixels is None else [_memory_with(pixels)]
        socket.send_fds(connection, [msgspec.json.encode(reply)], descriptor)
        for each in descriptor:
            os.close(each)


def _answer(data: bytes, request: _Request) -> tuple[_Reply, memoryview | None]:
    spec = request.spec
    try:
        picture = decode(data, spec.colour, request.max_pixels, partial(reduction, spec))
    except BadImage as error:
        return _Reply(error.message), None
    height, width, channels = picture.pixels.shape
    pixels = memoryview(np.ascontiguousarray(picture.pixels).reshape(-1).data)
    return _Reply("", (height, width, channels), picture.height, picture.width), pixels


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal
    for what, wanted in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_NOFILE, _FILES), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(what, (most, most))
    with suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as connection:
        _serve(connection)


if __name__ == "__main__":
    _main()
