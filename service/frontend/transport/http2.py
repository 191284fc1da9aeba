"""The transport on libnghttp2: sockets, and the connections that are accepted from them."""

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from convoy.service.followed import Followed
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.transport.connection import Connection
from convoy.service.frontend.transport.hub import Hub
from convoy.service.frontend.transport.interface import Limits, Service
from convoy.service.frontend.transport.nghttp2 import Library
from convoy.service.listener import Listener
from convoy.service.tls import Tls

_CHECK_SECONDS = 1.0
_TURN_SECONDS = 0.01
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
        tls: Followed[Tls] | None = None,
        doors: Doors | None = None,
        kept: int | None = None,
        *,
        library: Library,
    ) -> None:
        """`address` is HOST:PORT, [HOST]:PORT or unix:PATH; `kept` as in Make."""
        self._address = address
        self._kept = kept
        self._tls = tls
        self._hub = Hub(library, services, limits, doors)
        self._hub.client_ca = b"" if tls is None else tls.value.client_ca
        self._listening: list[socket.socket] = []
        self._listeners: list[Listener] = []
        self._checking: asyncio.TimerHandle | None = None
        self.addresses: list[str] = []  # where it listens, once it is started

    async def start(self) -> None:
        """See Transport. Raises OSError if the address is taken."""
        self._listening = await _sockets(self._address) if self._kept is None else [socket.socket(fileno=self._kept)]
        for listening in self._listening:
            if listening.family != socket.AF_UNIX:
                listening.setsockopt(
                    socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
                )  # inherited: finds callers that are gone
            name = listening.getsockname()
            self.addresses.append(_UNIX + name if isinstance(name, str) else _text(name))
        hub, tls = self._hub, self._tls
        self._listeners = [
            Listener(
                listening,
                lambda on_end: Connection(hub, hub.client_ca, on_end),
                hub.limits.connections // len(self._listening),
                _HANDSHAKE_SECONDS,
                lambda: None if tls is None else tls.value.context,
            )
            for listening in self._listening
        ]
        for listener in self._listeners:
            listener.start()
        self._check()

    async def renew(self) -> None:
        """See Transport. Connections end if other authorities sign the certificates of clients: theirs may be void."""
        assert self._tls is not None
        hub, client_ca = self._hub, self._tls.value.client_ca
        if client_ca != hub.client_ca:
            hub.client_ca = client_ca
            for connection in list(hub.connections):
                connection.lifetime.retire(_GRACE_SECONDS)

    async def leave(self, notice: float, patience: float) -> None:
        """See Transport."""
        for listener in self._listeners:
            listener.close(finally_refusing=True)
        connections, until = self._hub.connections, self._hub.loop.time() + patience
        left = False
        while not left and self._hub.loop.time() < until:
            for connection in list(connections):  # also those that were accepted last
                connection.lifetime.leave(notice)
            await asyncio.sleep(_TURN_SECONDS)
            left = all(
                connection.lifetime.told and all(exchange.started for exchange in connection.exchanges.values())
                for connection in connections
            )

    async def stop(self, seconds: float) -> None:
        """See Transport."""
        for listener in self._listeners:
            listener.close()
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

    def _check(self) -> None:
        self._hub.check_connections()
        self._checking = self._hub.loop.call_later(_CHECK_SECONDS, self._check)


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
    os.fchmod(listening.fileno(), 0o600)  # of the file that `bind` makes: nobody else may connect
    listening.bind(str(path))
    return listening


def _text(name: tuple[object, ...]) -> str:
    return f"[{name[0]}]:{name[1]}" if len(name) == 4 else f"{name[0]}:{name[1]}"
