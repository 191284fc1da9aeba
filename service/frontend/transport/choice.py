"""Chooses the transport: libnghttp2 where it can be loaded, else grpcio. Only the modules of one are imported."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

from convoy.service.followed import Followed
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.transport.interface import Limits, Service
from convoy.service.tls import Tls

log = logging.getLogger(__name__)


class Make(Protocol):
    """Builds a transport on the running loop, for an address.

    tls    must offer h2 by ALPN; None: no encryption
    doors  asked before anything else of every call; None: all of them are open
    kept   descriptor of a socket that is bound to the address, on which other processes listen before and after; gRPC
           opens one of its own all the same
    """

    def __call__(
        self,
        address: str,
        services: Sequence[Service],
        limits: Limits,
        tls: Followed[Tls] | None = None,
        doors: Doors | None = None,
        kept: int | None = None,
    ) -> "Transport":
        """Returns the transport, which does not listen yet."""


class Transport(Protocol):
    """A server that listens once it is started. One writer: the front end's loop."""

    async def start(self) -> None:
        """Starts accepting calls."""

    async def leave(self, notice: float, patience: float) -> None:
        """Sends callers elsewhere: accepts no more connections, and calls on those that are there until the caller
        knows, at most for `notice` seconds. Returns when the requests of these calls are complete, or after `patience`
        seconds."""

    async def stop(self, seconds: float) -> None:
        """Stops accepting calls, and cancels those in flight after `seconds`."""

    async def renew(self) -> None:
        """Uses the new value of `tls` for the connections to come."""


class Choice(NamedTuple):
    """A transport: its name, the version of its library, and how it is made."""

    name: str
    version: str
    make: Make

    @property
    def extension(self) -> str:
        """Its name among the extensions of the server, by which clients see it."""
        return f"convoy_transport:{self.name}"


def choose(setting: Literal["auto", "nghttp2", "grpcio"]) -> Choice:
    """Returns the transport that `server.transport` asks for, and logs its name.

    Raises NoLibrary if it asks for a library that is not there; the supervisor has looked before.
    """
    choice = _grpcio() if setting == "grpcio" else _nghttp2(fall_back=setting == "auto")
    log.info("gRPC is served by %s %s", choice.name, choice.version)
    return choice


def _nghttp2(*, fall_back: bool) -> Choice:
    from convoy.service.frontend.transport import nghttp2  # noqa: PLC0415
    from convoy.service.frontend.transport.http2 import Http2  # noqa: PLC0415

    try:
        library = nghttp2.Library()
    except nghttp2.NoLibrary as error:
        if not fall_back:
            raise
        log.warning("%s: calls cost several times the CPU time without it", error)
        return _grpcio()

    return Choice("nghttp2", library.version, partial(Http2, library=library))


def _grpcio() -> Choice:
    # gRPC would write lines of its own to stderr, some for every caller that breaks a rule.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    import grpc  # noqa: PLC0415

    from convoy.service.frontend.transport.grpc_aio import GrpcAio  # noqa: PLC0415

    return Choice("grpcio", grpc.__version__, GrpcAio)
