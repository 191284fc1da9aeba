"""Messages between the supervisor and its processes: small JSON documents, some with a socket attached."""

import asyncio
import os
import socket
from collections.abc import Callable

import msgspec

from convoy.service.config import Config

_MAX_MESSAGE = 65_536


class Suspect(msgspec.Struct, frozen=True):
    """A version that an engine was loading when it died; `stamp` identifies the state of its files."""

    model: str
    version: int
    stamp: str


class Start(msgspec.Struct, frozen=True, tag=True):
    """To a process, the first message: its role and configuration."""

    config: Config  # for an engine: with its device, and its share of the threads
    devices: tuple[int, ...]  # all devices, with one engine each
    repository: str
    grpc_address: str
    metrics_directory: str
    store: str  # folder of what engines keep for their successors
    cache: str  # folder of what outlasts the server
    suspects: tuple[tuple[Suspect, int], ...] = ()  # for an engine: how many earlier ones died while loading each
    withdrawn: tuple[tuple[str, int], ...] = ()  # for an engine: models and versions whose inputs end engines


class Link(msgspec.Struct, frozen=True, tag=True):
    """To a process: the attached socket is its channel to a process of the other kind.

    peer          number of the front end; never reused
    device        device of the engine
    from_outside  whether another process killed the engine before: no input did
    """

    peer: int
    device: int
    from_outside: bool = False


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a front end: report not ready at once, answer accepted requests, then exit."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, on every change: whether a front end can receive requests, and what is missing."""

    listening: bool
    ready: bool
    reason: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: the version that an engine loads from now on; None if it loads nothing."""

    what: Suspect | None


class Deadly(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, and from there to the other front ends: an input of this version has ended engines."""

    model: str
    version: int
    digest: bytes
    sample: bytes  # see Quarantine


class Withdraw(msgspec.Struct, frozen=True, tag=True):
    """To an engine: this version must not serve, because its inputs end engines."""

    model: str
    version: int


Message = Start | Link | Drain | Status | Loading | Deadly | Withdraw
_decoder = msgspec.json.Decoder(Message)


def send(connection: socket.socket, message: Message, descriptor: int | None = None) -> None:
    """Sends a message and duplicates the descriptor. Raises ConnectionError if the other side has closed."""
    socket.send_fds(connection, [msgspec.json.encode(message)], [] if descriptor is None else [descriptor])


def receive(connection: socket.socket) -> tuple[Message, socket.socket | None] | None:
    """Returns a message and its socket, or None if none is ready. Raises ConnectionError at the end of the channel."""
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
    """Waits for a process's first message and returns it. Makes the connection non-blocking.

    Raises SystemExit if no message arrives, for example because the command line was wrong.
    """
    try:
        received = receive(connection)
    except ConnectionError:
        raise SystemExit(0) from None
    assert received is not None
    assert isinstance(received[0], Start), "a process receives its role first"
    connection.setblocking(False)
    return received[0]


def listen(
    connection: socket.socket,
    on_message: Callable[[Message, socket.socket | None], None],
    on_end: Callable[[], None],
) -> None:
    """Passes each message to `on_message` on the running loop. Calls `on_end` once, when the other side has closed."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            while received := receive(connection):
                on_message(*received)
        except ConnectionError:
            loop.remove_reader(connection)
            on_end()

    loop.add_reader(connection, read)
