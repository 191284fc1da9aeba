"""The HTTP port of a front end: connections from a listening socket that all front ends share."""

import socket
import ssl
from collections.abc import Callable
from typing import Any

from convoy.service.config import Config
from convoy.service.frontend.rest.refusals import JSON, said
from convoy.service.listener import Listener
from convoy.service.web.connection import Limits, serving

_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 75.0


class Web:
    """The port. One writer: the front end's loop."""

    def __init__(
        self,
        listening: socket.socket,
        application: Callable[..., Any],
        config: Config,
        connections: int,
        context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        limits = Limits(
            head_bytes=config.limits.max_metadata_bytes,
            head_seconds=_HEAD_SECONDS,
            body_bytes=config.limits.max_message_bytes,
            body_seconds=config.limits.stall_seconds,
            idle_seconds=config.server.max_connection_idle_seconds or _IDLE_SECONDS,
            stalls=True,
            patient=False,
        )
        make = serving(application, limits, lambda status, text: (JSON, said(status, text)))
        self._listener = Listener(listening, make, connections, _HEAD_SECONDS, context)

    def start(self) -> None:
        """Starts accepting connections."""
        self._listener.start()

    async def stop(self, seconds: float) -> None:
        """Stops accepting connections, lets requests be answered, and closes what is left after so long."""
        self._listener.close()
        await self._listener.leave(seconds)

    def renew(self) -> None:
        """Uses the new certificates for the connections to come."""
        self._listener.retire()
