"""Who may use the HTTP ports: the certificates and callers of the supervisor, read again when they change."""

import asyncio
import logging
from typing import TYPE_CHECKING

from convoy.service import access, tls
from convoy.service.config import Config
from convoy.service.followed import POLL_SECONDS, wait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from convoy.service.supervisor import endpoints

log = logging.getLogger(__name__)


class Doors:
    """The files that say who may use the HTTP ports. One writer: the supervisor's loop; the HTTP threads only read."""

    def __init__(self, config: Config) -> None:
        """Raises BadConfig."""
        self._public = config.access.public
        self._callers = access.follow(config.access)
        self._tls = tls.follow(config.tls, "http/1.1")
        self._reload = asyncio.Event()
        if self._callers is not None and not config.tls.certificate:
            log.warning("tokens of callers are not encrypted on their way: set tls.certificate and tls.key")

    def of_ports(self) -> "Mapping[endpoints.Area, endpoints.Door]":
        """Returns the doors of the two ports."""
        from convoy.service.supervisor.endpoints import Door  # noqa: PLC0415  see above

        return {
            "probes": Door(self._callers, self._tls, "probes" in self._public),
            "metrics": Door(self._callers, self._tls, "metrics" in self._public, "metrics"),
        }

    def reload(self) -> None:
        """Reads all files again."""
        self._reload.set()

    async def follow(self) -> None:
        """Reads files again that have changed."""
        while True:
            await wait(self._reload, POLL_SECONDS)
            now = self._reload.is_set()
            self._reload.clear()
            if self._callers is not None:
                access.poll(self._callers, now=now)
            if self._tls is not None:
                self._tls.poll(now=now)
