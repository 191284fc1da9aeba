"""What the supervisor and its processes tell each other: small JSON messages, some with a socket handed over."""

import asyncio
import os
import socket
from collections.abc import Callable

import msgspec

from convoy.service.config import Config

_MAX_MESSAGE = 65_536


class Suspect(msgspec.Struct, frozen=True):
    """A version that an engine was loading when it died; `stamp` tells one state of its files from another."""

    model: str
    version: int
    stamp: str


class Start(msgspec.Struct, frozen=True, tag=True):
    """To a process, first: what it is."""

    config: Config  # to an engine: its device, and its share of the threads
    devices: tuple[int, ...]  # all of them, with an engine each
    repository: str
    grpc_address: str
    metrics_directory: str
    suspects: tuple[tuple[Suspect, int], ...] = ()  # to an engine: how many of its predecessors each has seen die


class Link(msgspec.Struct, frozen=True, tag=True):
    """To a process: the socket that travels with this is your channel to the other kind.

    peer    which front end; numbers are never used twice
    device  whose engine
    """

    peer: int
    device: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a front end: be not ready at once, answer what you accepted, end."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, whenever it changes: whether a front end can be sent requests, and what is missing."""

    listening: bool
    ready: bool
    reason: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: what an engine loads from now on; None where it loads nothing."""

    what: Suspect | None


Message = Start | Link | Drain | Status | Loading
_decoder = msgspec.json.Decoder(Message)


def send(connection: socket.socket, message: Message, descriptor: int | None = None) -> None:
    """Send a message; the descriptor is duplicated on the way. Raises ConnectionError where the other side has gone."""
    socket.send_fds(connection, [msgspec.json.encode(message)], [] if descriptor is None else [descriptor])


def receive(connection: socket.socket) -> tuple[Message, socket.socket | None] | None:
    """One message and the socket that came with it; None where none is there now. Raises ConnectionError at the end."""
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 1)
    except BlockingIOError:
        return None
    if not data:
        raise ConnectionError("the supervisor closed the channel")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return _decoder.decode(data), socket.socket(fileno=descriptors[0]) if descriptors else None


def receive_start(connection: socket.socket) -> Start:
    """The first message that a process gets. Waits for it; from then on the connection no longer blocks.

    Raises SystemExit where none comes: the command line was wrong, say.
    """
    try:
        received = receive(connection)
    except ConnectionError:
        raise SystemExit(0) from None
    assert received is not None
    assert isinstance(received[0], Start), "a process is told what it is before anything else"
    connection.setblocking(False)
    return received[0]


def listen(
    connection: socket.socket,
    on_message: Callable[[Message, socket.socket | None], None],
    on_end: Callable[[], None],
) -> None:
    """Hand on every message on the running loop; `on_end` is called once, when the other side has closed or died."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            while received := receive(connection):
                on_message(*received)
        except ConnectionError:
            loop.remove_reader(connection)
            on_end()

    loop.add_reader(connection, read)
