"""The seam between a transport and the methods that it calls.

A transport accepts connections and speaks HTTP/2 and gRPC's framing. It stamps each message when it has come as a
whole, cancels the task of a call whose caller has gone or whose deadline has passed, and writes statuses as `status.py`
has them.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from convoy.service.errors import ConvoyError


class Received(NamedTuple):
    """A message before it is parsed, so that its arrival is stamped first, and a bad one gets the usual status."""

    data: bytes
    arrived: int  # CLOCK_MONOTONIC, ns


class Stream(Protocol):
    """A call that is a stream in both directions."""

    deadline: int  # of the call: CLOCK_MONOTONIC, ns, or NEVER

    async def read(self) -> Received | None:
        """The next message; None once the caller has sent all."""

    async def write(self, data: bytes) -> None:
        """Send a message; returns when there is room for another. Dropped where the caller has gone."""


# A message and the call's deadline in, the answer or the refusal out.
Unary = Callable[[Received, int], Awaitable[bytes | ConvoyError]]
Streaming = Callable[[Stream], Awaitable[None]]


class Service(NamedTuple):
    """The methods of one service by their names, `Classify` for one."""

    name: str  # such as convoy.v1.Vision
    unary: dict[str, Unary]
    streaming: dict[str, Streaming]


class Transport(Protocol):
    """A server that is listening once it is started. One writer: the front end's loop."""

    async def start(self) -> None:
        """Accept calls."""

    async def stop(self, seconds: float) -> None:
        """Accept nothing more; calls that are under way may take so long before they are cancelled."""

    async def set_health(self, service: str, serving: bool) -> None:
        """What grpc.health.v1 answers about a name; the empty one is the server."""


class Limits(NamedTuple):
    """What a transport refuses by itself."""

    message_bytes: int
    metadata_bytes: int
    calls: int  # at a time
    min_ping_seconds: float  # between two pings of a client


# What starts a transport of a kind on an address, such as 127.0.0.1:8001 or unix:/run/convoy.sock.
Build = Callable[[str, Sequence[Service], Limits], Transport]
