"""Messages between the supervisor and its processes: small JSON documents, some with a socket attached."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from convoy.service.config import Config, LogLevel
from convoy.service.errors import BadRequest, ConvoyError, ModelUnavailable, UnknownModel

_MAX_MESSAGE = 131_072  # bytes: all regions, with their longest names
MOST_REGIONS = 128  # each is an open file in every front end
MOST_DESCRIPTORS = MOST_REGIONS + 2  # with one message: those of a Start, with both ports


class Suspect(msgspec.Struct, frozen=True):
    """A version that an engine was loading when it died; `stamp` identifies the state of its files."""

    model: str
    version: int
    stamp: str


class Region(msgspec.Struct, frozen=True, tag=True):
    """A change: a region of a client's shared memory is registered. Its descriptor travels with the message.

    name    by which requests refer to it
    key     of the memory, as the client gave it
    offset  of the region in the memory, in bytes
    """

    name: str
    key: str
    offset: int
    nbytes: int


class Tracing(msgspec.Struct, frozen=True, tag=True):
    """A change: whether requests for a model leave their times in the log; "": for all models without an own setting.

    None leaves the choice to the setting for all models, and there to the default.
    """

    model: str
    on: bool | None = None
    rate: int | None = None  # one of so many requests does


class Deadly(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, and from there to the other front ends: an input of this version has ended engines."""

    model: str
    version: int
    digest: bytes
    sample: bytes  # see Quarantine
    until: float  # when it is refused no longer


class Pictures(msgspec.Struct, frozen=True, tag=True):
    """Pictures that end, or may end, the process that decodes them: by digest, until when. To front ends, and from the
    one that has found out.

    suspects     a front end decoded them when it ended
    guilty       they have ended the process that decoded them alone
    apart_until  until when all pictures are decoded apart, because a decoder has crashed
    """

    suspects: tuple[tuple[bytes, float], ...] = ()
    guilty: tuple[tuple[bytes, float], ...] = ()
    apart_until: float = 0.0


class Given(NamedTuple):
    """The descriptors that come with a Start.

    http     the HTTP port's listening socket, which all front ends share
    port     the gRPC port's socket, which outlives the process: of a front end that is the only one
    regions  of the regions, in their order
    """

    http: int | None = None
    port: int | None = None
    regions: Sequence[int] = ()


class Start(msgspec.Struct, frozen=True, tag=True):
    """To a process, the first message: its role and configuration."""

    config: Config  # for an engine: with its device, and its share of the threads
    devices: tuple[int, ...]  # all devices, with one engine each
    repository: str  # the folder; "": there is none
    grpc_address: str
    metrics_directory: str
    store: str  # folder of what engines keep for their successors
    cache: str  # folder of what outlasts the server
    single: dict[str, str] = {}  # for an engine: paths of models outside the repository, by name
    suspects: tuple[tuple[Suspect, int], ...] = ()  # for an engine: how many earlier ones died while loading each
    withdrawn: tuple[tuple[str, int], ...] = ()  # for an engine: models and versions whose inputs end engines
    unloaded: tuple[str, ...] = ()  # for an engine: models that do not serve, because somebody has asked for that
    admin_address: str = ""  # for the front end that serves the administration port
    http: bool = False  # for a front end: whether it is given the HTTP port
    port: bool = False  # for a front end: whether it is given the gRPC port; it opens a socket of its own otherwise
    joins: bool = False  # for a front end: the server has been ready before, so it listens once it can serve
    regions: tuple[Region, ...] = ()  # for a front end
    tracing: tuple[Tracing, ...] = ()  # for a front end
    deadly: tuple[Deadly, ...] = ()  # for a front end: inputs that have ended engines
    pictures: Pictures = Pictures()  # for a front end

    def given(self, received: Sequence[int]) -> Given:
        """Returns which of the descriptors that came with it is what."""
        ports = iter(received)
        http = next(ports) if self.http else None
        port = next(ports) if self.port else None
        return Given(http, port, tuple(ports))


class Readiness(msgspec.Struct, frozen=True, tag=True):
    """To a front end, each second and when it changes: whether the whole server is ready, and the reason if not."""

    ready: bool
    reason: str


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


class Reload(msgspec.Struct, frozen=True, tag=True):
    """To a front end: read certificates and callers again."""


class Retire(msgspec.Struct, frozen=True, tag=True):
    """To a front end whose successor serves: send callers there, answer what has arrived, then exit."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, on every change: whether a front end can receive requests, and what is missing."""

    listening: bool
    ready: bool
    reason: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: the version that an engine loads from now on; None if it loads nothing."""

    what: Suspect | None


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, once: an engine has loaded what it is to serve."""


class Withdraw(msgspec.Struct, frozen=True, tag=True):
    """To an engine: this version must not serve, because its inputs end engines."""

    model: str
    version: int


class Load(msgspec.Struct, frozen=True, tag=True):
    """A change: look at the folder of a model now, and load what is there."""

    model: str


class Unload(msgspec.Struct, frozen=True, tag=True):
    """A change: a model stops serving, until it is loaded on request."""

    model: str


class Shown(msgspec.Struct, frozen=True, tag=True):
    """No change: to be confirmed by a front end once this version of a model is in its table; 0: once none is."""

    model: str
    version: int


class Forget(msgspec.Struct, frozen=True, tag=True):
    """A change: a region of shared memory is no longer registered; "": none is."""

    region: str


class Logging(msgspec.Struct, frozen=True, tag=True):
    """A change: the level of the log."""

    level: LogLevel


Change = Load | Unload | Shown | Region | Forget | Logging | Tracing


class Refusal(msgspec.Struct, frozen=True):
    """Why a change was not made: the reason and the message of a ConvoyError."""

    reason: str
    message: str


_REFUSALS = {kind.reason: kind for kind in (BadRequest, ModelUnavailable, UnknownModel)}


def refusal_of(error: ConvoyError) -> Refusal:
    """Returns an error as it travels."""
    return Refusal(error.reason, error.message)


def error_of(refusal: Refusal) -> ConvoyError:
    """Returns the error that a refusal stands for."""
    return _REFUSALS.get(refusal.reason, ConvoyError)(refusal.message)


class Ask(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor, from the front end that serves the administration port: a change that a caller asks for.

    number  by which the front end knows it
    """

    number: int
    change: Change


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """To that front end: the change is made in every process, or refused."""

    number: int
    refusal: Refusal | None = None


class Apply(msgspec.Struct, frozen=True, tag=True):
    """To a process: a change to make and to confirm.

    number  by which the supervisor knows it
    """

    number: int
    change: Change


class Applied(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: the change is made, or refused. `version` is the one that serves, after a Load."""

    number: int
    refusal: Refusal | None = None
    version: int = 0


Message = (
    Start
    | Readiness
    | Link
    | Drain
    | Reload
    | Retire
    | Status
    | Loading
    | Loaded
    | Deadly
    | Pictures
    | Withdraw
    | Ask
    | Outcome
    | Apply
    | Applied
)
_decoder = msgspec.json.Decoder(Message)


def send(connection: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Sends a message and duplicates the descriptors. Raises ConnectionError if the other side has closed."""
    socket.send_fds(connection, [msgspec.json.encode(message)], descriptors)


def receive(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """Returns a message and its descriptors, or None if none is ready. Raises ConnectionError at the end of the
    channel."""
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, MOST_DESCRIPTORS)
    except BlockingIOError:
        return None
    if not data:
        raise ConnectionError("the supervisor closed the channel")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return _decoder.decode(data), descriptors


def receive_start(connection: socket.socket) -> tuple[Start, list[int]]:
    """Waits for a process's first message and returns it with its descriptors. Makes the connection non-blocking.

    Raises SystemExit if no message arrives, for example because the command line was wrong.
    """
    try:
        received = receive(connection)
    except ConnectionError:
        raise SystemExit(0) from None
    assert received is not None
    assert isinstance(received[0], Start), "a process receives its role first"
    connection.setblocking(False)
    return received[0], received[1]


def listen(
    connection: socket.socket,
    on_message: Callable[[Message, list[int]], None],
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
