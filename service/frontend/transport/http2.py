"""The transport on libnghttp2: sockets, and the connections that are accepted from them."""

import asyncio
import os
import resource
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from convoy.service.followed import Followed
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.transport.connection import Connection
from convoy.service.frontend.transport.hub import Hub
from convoy.service.frontend.transport.interface import Limits, Service
from convoy.service.frontend.transport.nghttp2 import Library
from convoy.service.tls import Tls

_BACKLOG = 4096
_CHECK_SECONDS = 1.0
_HANDSHAKE_SECONDS = 10.0
_GRACE_SECONDS = 20.0  # for calls on connections that must end
_UNIX = "unix:"


class Http2:
    """See Transport. Constructed on the running loop."""

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        limits: Limits,
        library: Library,
        tls: Followed[Tls] | None = None,
        doors: Doors | None = None,
    ) -> None:
        """`address` is HOST:PORT, [HOST]:PORT or unix:PATH."""
        self._address = address
        self._tls = tls
        self._hub = Hub(library, services, limits, doors)
        self._hub.client_ca = b"" if tls is None else tls.value.client_ca
        self._listening: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._checking: asyncio.TimerHandle | None = None
        self.addresses: list[str] = []  # where it listens, once it is started

    async def start(self) -> None:
        """See Transport. Raises OSError if the address is taken."""
        _allow_many_connections()
        self._listening = await _sockets(self._address)
        for listening in self._listening:
            name = listening.getsockname()
            self.addresses.append(_UNIX + name if isinstance(name, str) else _text(name))
        self._servers = [await self._accept_from(listening) for listening in self._listening]
        self._check()

    async def renew(self) -> None:
        """See Transport. Connections end if other authorities sign the certificates of clients: theirs may be void."""
        assert self._tls is not None
        before, self._servers = self._servers, [await self._accept_from(listening) for listening in self._listening]
        for server in before:
            server.close()
        hub, client_ca = self._hub, self._tls.value.client_ca
        if client_ca != hub.client_ca:
            hub.client_ca = client_ca
            for connection in list(hub.connections):
                connection.lifetime.retire(_GRACE_SECONDS)

    async def stop(self, seconds: float) -> None:
        """See Transport."""
        for server in self._servers:
            server.close()
        for listening in self._listening:
            listening.close()
        hub = self._hub
        for connection in list(hub.connections):
            connection.lifetime.leave(seconds / 2)
        with suppress(TimeoutError):
            await asyncio.wait_for(hub.emptied.wait(), seconds)
        for connection in list(hub.connections):
            connection.lifetime.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(hub.emptied.wait(), _CHECK_SECONDS)
        for connection in list(hub.connections):
            connection.end("server is shutting down")
        await hub.emptied.wait()
        if self._checking is not None:
            self._checking.cancel()

    async def _accept_from(self, listening: socket.socket) -> asyncio.Server:
        # A server uses one set of certificates for ever, so there is a new one for each; they share the socket. A new
        # set resumes no session of an old one: the certificate of a client is checked again.
        loop, hub = asyncio.get_running_loop(), self._hub
        secured: dict[str, Any] = {}
        client_ca = b""
        if self._tls is not None:
            secured = {"ssl": self._tls.value.context, "ssl_handshake_timeout": _HANDSHAKE_SECONDS}
            client_ca = self._tls.value.client_ca
        make = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
        return await make(lambda: Connection(hub, client_ca), sock=listening.dup(), backlog=_BACKLOG, **secured)

    def _check(self) -> None:
        self._hub.check_connections()
        self._checking = self._hub.loop.call_later(_CHECK_SECONDS, self._check)


def _allow_many_connections() -> None:
    # A connection is a file. The usual limit of 1024 is there for programs that use select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _sockets(address: str) -> list[socket.socket]:
    if address.startswith(_UNIX):
        return [_unix_socket(Path(address.removeprefix(_UNIX)))]
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return [_bound(family, where) for family, _, _, _, where in dict.fromkeys(found)]


def _bound(family: int, where: tuple[object, ...]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # several front ends
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # inherited: finds callers that are gone
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, where[0] != "::")  # [::] means both
        listening.bind(where)
    except BaseException:
        listening.close()
        raise
    return listening


def _unix_socket(path: Path) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116  left behind by another server
            path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    listening.bind(str(path))
    return listening


def _text(name: tuple[object, ...]) -> str:
    return f"[{name[0]}]:{name[1]}" if len(name) == 4 else f"{name[0]}:{name[1]}"
