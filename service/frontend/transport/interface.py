"""The interface between a transport and the methods that it calls.

A transport accepts connections and implements HTTP/2 and gRPC's framing. It stamps each message when it has arrived
completely, cancels the task of a call whose caller has gone or whose deadline has passed, and writes statuses as
`status.py` defines them.
"""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from convoy.service.access import Caller
from convoy.service.errors import ConvoyError
from convoy.service.frontend.threads import NOBODY, Who
from convoy.service.frontend.trace import Trace

Data = bytes | bytearray
LEAST_COMPRESSED = 1024  # bytes of an answer: a shorter one fits into a packet anyway
LARGE = 1 << 16  # bytes of a payload; copying less takes less time than finding it


class Landing(Protocol):
    """A message on its way to where its method wants the large payloads. Once complete, it stands for its bytes."""

    def __len__(self) -> int:
        """Bytes of the whole message."""

    def write(self, piece: memoryview) -> int:
        """Accepts the next bytes. Returns their number; fewer than there are if the transport has to put the message
        together itself."""

    def so_far(self) -> bytearray:
        """Returns all bytes that it has accepted."""

    def lifted(self) -> tuple[Data, Mapping[int, memoryview]]:
        """Returns the complete message without its large payloads, and those by number."""

    def release(self) -> None:
        """Ends the transport's use. Called once: when the call has ended, and no method serves it any more."""


class Received(NamedTuple):
    """An unparsed message: its arrival is stamped before parsing, and a malformed one gets the usual status."""

    data: Data | Landing
    arrived: float  # seconds of CLOCK_MONOTONIC, as all points in time
    caller: Caller | None = None  # None: everybody may do everything
    trace: Trace | None = None
    source: Who = NOBODY  # the address and the connection that it came from


class Stream(Protocol):
    """A call that streams in both directions."""

    @property
    def deadline(self) -> float:
        """The deadline of the call; inf: none."""

    async def read(self) -> Received | None:
        """Returns the next message, or None once the caller has sent all."""

    async def write(self, data: bytes) -> None:
        """Sends a message and returns when there is room for another. Drops it if the caller has gone."""


# Accepts a message and the call's deadline (inf: none); returns the answer or the refusal.
Unary = Callable[[Received, float], Awaitable[bytes | ConvoyError]]
# Returns the refusal that ends the call; None: all went well.
Streaming = Callable[[Stream], Awaitable[ConvoyError | None]]


# Sends the answer or the refusal of a unary call.
Reply = Callable[[bytes | ConvoyError], None]
# Tries to serve a unary call without a task: returns a function that ends its wait, or None if a task has to serve it.
# The reply comes later, or at once; never after the wait was ended.
Prompt = Callable[[Received, float, Reply], Callable[[], None] | None]

# Accepts an uncompressed message as it arrives, given its length in bytes: LARGE or more.
Land = Callable[[int], Landing]


class Service(NamedTuple):
    """The methods of one service by name, such as `Classify`. A transport may ignore `prompt` and `land`.

    A `vital` service is served however many calls of others are in progress: probes decide whether the server lives.
    """

    name: str  # such as convoy.v1.Vision
    unary: dict[str, Unary]
    streaming: dict[str, Streaming]
    prompt: Mapping[str, Prompt] = MappingProxyType({})
    land: Mapping[str, Land] = MappingProxyType({})  # of unary methods
    vital: bool = False


class Limits(NamedTuple):
    """What a transport enforces, and does to answers, by itself. Ages are in seconds; 0: none."""

    message_bytes: int
    metadata_bytes: int
    calls: int  # concurrent, with one request each; as many streams, and again as many of vital services
    min_ping_seconds: float  # between two pings of a client
    receiving_bytes: int = 1 << 30  # of messages that are not complete, on all connections together
    stall_seconds: float = 0  # in which a caller must send some of a message that it has begun
    connection_calls: int = 0  # concurrent on one connection; 0: as many as `calls`
    connection_age: float = 0  # after which a connection accepts no more calls
    connection_grace: float = 0  # for its calls to end after that
    connection_idle: float = 0  # without a call, after which a connection is closed
    compression: Literal["none", "gzip", "deflate"] = "none"  # of answers, for callers that accept it
    connections: int = 10_000  # a further one closes another


class Room:
    """Calls of one kind in progress, and how many there may be. One writer: the front end's loop."""

    __slots__ = ("calls", "most", "what")

    def __init__(self, what: str, most: int) -> None:
        self.what = what  # as in a message: calls, streams
        self.most = most
        self.calls = 0

    @property
    def full(self) -> bool:
        """Whether no further call may begin."""
        return self.calls >= self.most

    @property
    def scarce(self) -> bool:
        """Whether more than half of the places are taken."""
        return 2 * self.calls > self.most

    @property
    def refusal(self) -> str:
        """The message for a call that may not begin."""
        return f"{self.calls} {self.what} are in progress, want at most {self.most}"


class Rooms:
    """The rooms of a transport. Calls that are never answered and streams that say nothing take no place of others."""

    def __init__(self, limits: Limits) -> None:
        self._common = Room("calls", limits.calls), Room("streams", limits.calls)
        self._vital = Room("health checks", limits.calls), Room("health watches", limits.calls)

    def of(self, service: Service, *, streaming: bool) -> Room:
        """Returns the room of a service's unary calls or streams."""
        return (self._vital if service.vital else self._common)[streaming]

    @property
    def calls(self) -> int:
        """All calls in progress."""
        return sum(room.calls for room in (*self._common, *self._vital))
