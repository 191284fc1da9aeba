"""How long a connection lasts: what a caller may do without a call, idle time, age, and the two steps of a goodbye."""

import logging
import math
import random
from typing import TYPE_CHECKING

from convoy.service.frontend.status import Code
from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.nghttp2 import ffi

if TYPE_CHECKING:
    from convoy.service.frontend.transport.connection import Connection

log = logging.getLogger(__name__)

_MAX_IDLE_FRAMES = 10_000  # received in a row that are no part of a call: empty, or about the connection
_MAX_PING_STRIKES = 2  # as in gRPC's core
_PREFACE_SECONDS = 20.0  # for a caller to say what it speaks
_NOTICE_SECONDS = 10.0  # between the two GOAWAY frames, if no answer to a PING comes earlier
_CLOSING_SECONDS = 5.0  # for the last bytes to be read


class Lifetime:
    """When and why a connection ends. One writer: the front end's loop. Points in time are the loop's."""

    def __init__(self, connection: "Connection") -> None:
        self.idle_frames = 0
        self.caller_leaves = False  # it has said so
        self._connection = connection
        self._settled = False  # the caller has sent a complete frame
        self._strikes = 0
        self._last_ping = -math.inf
        self._leaving = False
        self._final = False  # the second GOAWAY is sent
        self._dismissed = False
        self._end_at = math.inf
        self._retire_at = math.inf
        self._idle_since = 0.0

    @property
    def told(self) -> bool:
        """Whether the caller knows that this connection accepts no more calls."""
        return self._final

    @property
    def over(self) -> bool:
        """Whether both GOAWAY frames are sent and every call is answered."""
        return self._leaving and self._final and not self._connection.exchanges

    def start(self) -> None:
        """Records that the connection is open."""
        now = self._connection.loop.time()
        self._idle_since = now
        self._end_at = now + _PREFACE_SECONDS
        if age := self._connection.hub.limits.connection_age:
            # Jitter, so that callers that connected together do not reconnect together.
            self._retire_at = now + age * random.uniform(0.9, 1.1)

    def calls_ended(self) -> None:
        """Records that the last call has ended."""
        self._idle_since = self._connection.loop.time()

    def limit_closing(self) -> None:
        """Limits the time in which the last bytes must be read."""
        self._end_at = self._connection.loop.time() + _CLOSING_SECONDS

    def idle_frame(self, kind: int, acknowledges: bool) -> None:
        """Counts a frame that is no part of a call, and pings that come too fast."""
        self.idle_frames += 1
        if self.idle_frames > _MAX_IDLE_FRAMES:
            self._dismiss(b"too many frames without a request")
        if kind == nghttp2.SETTINGS and not self._settled:
            self._settled = True
            if not self._leaving:
                self._end_at = math.inf
        elif kind == nghttp2.GOAWAY:
            self.caller_leaves = True
        elif kind == nghttp2.PING and acknowledges and self._leaving:
            self._send_final_notice()
        elif kind == nghttp2.PING and not acknowledges:
            self._count_ping()

    def forgive_pings(self) -> None:
        """Forgets the pings so far, because something is sent.

        As gRPC's core does: clients measure the connection by pings while they receive.
        """
        self._strikes = 0
        self._last_ping = -math.inf

    def leave(self, seconds: float) -> None:
        """Asks the caller to use another connection, in two steps: calls that are on their way are still accepted.

        The second step comes when the caller has seen the first, or after `seconds`.
        """
        connection = self._connection
        if self._leaving or connection.session is None:
            return
        self._leaving = True
        connection.library.submit_shutdown_notice(connection.session)
        connection.library.submit_ping(connection.session, 0, ffi.NULL)
        connection.loop.call_later(seconds, self._send_final_notice)
        connection.send_soon()

    def retire(self, grace: float) -> None:
        """As `leave`, and ends the connection after `grace` seconds."""
        self._end_at = min(self._end_at, self._connection.loop.time() + grace)
        self.leave(_NOTICE_SECONDS)

    def cancel(self) -> None:
        """Ends all calls, and closes the connection once they are answered."""
        self._leaving = True
        self._send_final_notice()
        for exchange in list(self._connection.exchanges.values()):
            exchange.fail(Code.UNAVAILABLE, "server is shutting down")
        self.limit_closing()

    def check(self, now: float) -> None:
        """Ends the connection if its time is up."""
        connection, limits = self._connection, self._connection.hub.limits
        idle = limits.connection_idle and not connection.exchanges and now >= self._idle_since + limits.connection_idle
        if now >= self._end_at:
            connection.end("time is up")
        elif now >= self._retire_at:
            self._retire_at = math.inf
            if limits.connection_grace:
                self._end_at = now + limits.connection_grace
            self.leave(_NOTICE_SECONDS)
        elif idle:
            self.leave(_NOTICE_SECONDS)

    def _send_final_notice(self) -> None:
        connection = self._connection
        if self._final or connection.session is None:
            return
        self._final = True
        last = connection.library.session_get_last_proc_stream_id(connection.session)
        connection.library.submit_goaway(connection.session, 0, last, nghttp2.NO_ERROR, ffi.NULL, 0)
        connection.send_soon()

    def _count_ping(self) -> None:
        now = self._connection.loop.time()
        if now < self._last_ping + self._connection.hub.limits.min_ping_seconds:
            self._strikes += 1
            if self._strikes > _MAX_PING_STRIKES:
                self._dismiss(b"too_many_pings")  # the words for which gRPC's clients ping less often
        self._last_ping = now

    def _dismiss(self, reason: bytes) -> None:
        if self._dismissed:
            return
        self._dismissed = self._leaving = self._final = True
        connection = self._connection
        last = connection.library.session_get_last_proc_stream_id(connection.session)
        connection.library.submit_goaway(connection.session, 0, last, nghttp2.ENHANCE_YOUR_CALM, reason, len(reason))
        connection.strike()
        connection.send_soon()
        log.debug("connection ended", extra={"fields": {"reason": reason.decode()}})
        connection.loop.call_soon(connection.close)
