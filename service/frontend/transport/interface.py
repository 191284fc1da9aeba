"""The interface between a transport and the methods that it calls.

A transport accepts connections and implements HTTP/2 and gRPC's framing. It stamps each message when it has arrived
completely, cancels the task of a call whose caller has gone or whose deadline has passed, and writes statuses as
`status.py` defines them.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from convoy.service.access import Caller
from convoy.service.errors import ConvoyError
from convoy.service.followed import Followed
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.trace import Trace
from convoy.service.tls import Tls

Data = bytes | bytearray


class Received(NamedTuple):
    """An unparsed message: its arrival is stamped before parsing, and a malformed one gets the usual status."""

    data: Data
    arrived: float  # seconds of CLOCK_MONOTONIC, as all points in time
    caller: Caller | None = None  # None: everybody may do everything
    trace: Trace | None = None


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


class Service(NamedTuple):
    """The methods of one service by name, such as `Classify`. A transport may ignore `prompt`."""

    name: str  # such as convoy.v1.Vision
    unary: dict[str, Unary]
    streaming: dict[str, Streaming]
    prompt: Mapping[str, Prompt] = MappingProxyType({})


class Make(Protocol):
    """Builds a transport on the running loop, for an address.

    tls    must offer h2 by ALPN; None: no encryption
    doors  asked before anything else of every call; None: all of them are open
    """

    def __call__(
        self,
        address: str,
        services: Sequence[Service],
        limits: "Limits",
        tls: Followed[Tls] | None = None,
        doors: Doors | None = None,
    ) -> "Transport":
        """Returns the transport, which does not listen yet."""


class Transport(Protocol):
    """A server that listens once it is started. One writer: the front end's loop."""

    async def start(self) -> None:
        """Starts accepting calls."""

    async def stop(self, seconds: float) -> None:
        """Stops accepting calls, and cancels those in flight after `seconds`."""

    async def renew(self) -> None:
        """Uses the new value of `tls` for the connections to come."""


class Limits(NamedTuple):
    """Limits that a transport enforces by itself. Ages are in seconds; 0: none."""

    message_bytes: int
    metadata_bytes: int
    calls: int  # concurrent
    min_ping_seconds: float  # between two pings of a client
    receiving_bytes: int = 1 << 30  # of messages that are not complete, on all connections together
    connection_calls: int = 0  # concurrent on one connection; 0: as many as `calls`
    connection_age: float = 0  # after which a connection accepts no more calls
    connection_grace: float = 0  # for its calls to end after that
    connection_idle: float = 0  # without a call, after which a connection is closed
