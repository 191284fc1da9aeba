"""The HTTP port of a front end, opened once gRPC listens: importing what speaks HTTP takes a quarter of a second."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convoy.service import tls
from convoy.service.access import Callers
from convoy.service.config import Config
from convoy.service.followed import Followed
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.threads import Threads
from convoy.service.frontend.transport.interface import Limits, Service, Unary
from convoy.service.ipc.messages import Readiness, Start

if TYPE_CHECKING:
    from convoy.service.frontend.rest.probes import Probes
    from convoy.service.frontend.rest.web import Web

_BEATS = 3  # of the supervisor that may be missing
_LEAST_PATIENCE = 3.0  # seconds


class HttpPort:
    """The port. One writer: the front end's loop.

    draining  whether the front end drains
    """

    def __init__(
        self,
        start: Start,
        descriptor: int,
        services: Sequence[Service],
        catalogue: Catalogue,
        threads: Threads,
        decoder: Decoder,
        callers: Followed[Callers] | None,
        limits: Limits,
        draining: Callable[[], bool],
    ) -> None:
        """`descriptor` is the listening socket's; `limits` are those of the transport of gRPC."""
        self._start = start
        self._config: Config = start.config
        self._listening = socket.socket(fileno=descriptor)
        self._methods: Mapping[str, Unary] = {
            name: method for service in services for name, method in service.unary.items()
        }
        self._catalogue = catalogue
        self._threads = threads
        self._decoder = decoder
        self._limits = limits
        self._draining = draining
        self._doors = Doors(start.config.access, callers, start.config.quotas)
        self._tls = tls.follow(start.config.tls, "http/1.1")
        self._said: Readiness | None = None
        self._probes: Probes | None = None
        self._web: Web | None = None

    @property
    def is_open(self) -> bool:
        """Whether connections have been accepted."""
        return self._web is not None

    async def open(self, begin: asyncio.Event | None) -> None:
        """Starts accepting connections, not before `begin`."""
        await asyncio.to_thread(_import)
        if begin is not None:
            await begin.wait()
        if self._listening.fileno() < 0:
            return  # stopped meanwhile
        from convoy.service.frontend.rest import application  # noqa: PLC0415  see above
        from convoy.service.frontend.rest.probes import Probes  # noqa: PLC0415
        from convoy.service.frontend.rest.web import Web  # noqa: PLC0415

        patience = self._config.server.heartbeat_seconds * _BEATS
        self._probes = Probes(self._draining, max(patience, _LEAST_PATIENCE) if patience else 0)
        if self._said is not None:
            self._probes.hear(self._said)
        site = application.site(
            start=self._start,
            methods=self._methods,
            catalogue=self._catalogue,
            threads=self._threads,
            doors=self._doors if self._doors.needed else None,
            probes=self._probes,
            decoder=self._decoder,
            limits=self._limits,
            metrics_directory=Path(self._start.metrics_directory),
        )
        self._web = Web(self._listening, site, self._config, self._limits.connections, self._context)
        self._web.start()

    def hear(self, readiness: Readiness) -> None:
        """Records what the supervisor says."""
        self._said = readiness
        if self._probes is not None:
            self._probes.hear(readiness)

    def poll(self, *, now: bool) -> None:
        """Reads the certificates again if they have changed."""
        if self._tls is not None and self._tls.poll(now=now) and self._web is not None:
            self._web.renew()

    async def stop(self, seconds: float) -> None:
        """Stops accepting requests, and closes what is left after so long."""
        if self._web is None:
            self._listening.close()
        else:
            await self._web.stop(seconds)

    def _context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            return None
        # Whoever needs no certificate can do without; the doors ask all others for it.
        return self._tls.value.lenient if self._config.access.public else self._tls.value.context


def _import() -> None:
    from convoy.service.frontend.rest import application, web  # noqa: F401, PLC0415
