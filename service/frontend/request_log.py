"""A line of the log for each request, where `server.log_requests` asks for it; no more a second than are of use."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from convoy.service.access import Caller
    from convoy.service.frontend.trace import Trace

log = logging.getLogger(__name__)

_MOST_OF_A_DETAIL = 500  # characters; a caller may have chosen them


class Logged(Protocol):
    """What a line says of a request: see Call."""

    method: str
    model: str
    version: str
    arrived: float
    caller: "Caller | None"
    trace: "Trace | None"

    @property
    def peer(self) -> str: ...


class RequestLog:
    """Which requests of this process are logged, and how many were lately. One writer: the front end's loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failed = False
        self.all = False
        self._clock = clock
        self._second = 0.0  # when the current one began
        self._lines = 0  # in it
        self._dropped = 0
        self._most = 100  # lines a second: whoever is refused could otherwise fill the disk; 0: no limit

    def set(self, setting: Literal["none", "failed", "all"], most: int = 100) -> None:
        """Follows `server.log_requests`, and the most lines a second."""
        self._most = most
        self.failed = setting != "none"
        self.all = setting == "all"

    def answered(self, call: Logged) -> None:
        """Writes a line on a request that was answered; to be called if `all` is on."""
        if self._has_room():
            log.info("request answered", extra={"fields": self._fields(call)})

    def refused(self, call: Logged, reason: str, detail: str = "") -> None:
        """Writes a line on a request, or an image, that was not; to be called if `failed` is on."""
        if self._has_room():
            fields = {**self._fields(call), "reason": reason, "detail": detail[:_MOST_OF_A_DETAIL]}
            log.warning("request refused", extra={"fields": fields})

    def refused_at_door(self, fields: dict[str, object]) -> None:
        """The same for a call that was refused before its request was read."""
        if self._has_room():
            log.warning("call refused", extra={"fields": fields})

    def _has_room(self) -> bool:
        now = self._clock()
        if now >= self._second + 1:
            if self._dropped:
                text = "%d requests were not logged: there is room for %d lines a second"
                log.warning(text, self._dropped, self._most)
            self._second, self._lines, self._dropped = now, 0, 0
        if self._most and self._lines >= self._most:
            self._dropped += 1
            return False
        self._lines += 1
        return True

    def _fields(self, call: Logged) -> dict[str, object]:
        fields: dict[str, object] = {"method": call.method, "model": call.model, "version": call.version}
        fields |= {"seconds": round(self._clock() - call.arrived, 6), "peer": call.peer}
        if call.caller is not None and not call.caller.public:
            fields["caller"] = call.caller.name
        return fields if call.trace is None else fields | call.trace.fields()


REQUESTS = RequestLog()  # of this process, as its metrics are
