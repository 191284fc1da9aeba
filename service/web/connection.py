"""One connection of HTTP/1: uvicorn's protocol, with limits of what a client may send and how long it may take.

uvicorn limits only how long a connection may be idle: a client could send a request a byte at a time, or a header
without an end. Importing it takes 40 ms.
"""

import asyncio
import logging
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from convoy.service.tls import names

log = logging.getLogger(__name__)

Application = Callable[..., Any]  # of ASGI 3
_MOST_AHEAD = 16  # requests that a client may send before the answer to an earlier one
_MOST_DIGITS = 18
_LINGER = 2.0  # seconds for a refused client to read why, and to stop sending


class Limits(NamedTuple):
    """What a client may send, and how long it may take.

    head_bytes    of a request's first line and headers
    head_seconds  for these, and before them for the handshake of TLS
    body_bytes    of a request's body; more is refused
    body_seconds  for the body, or if it `stalls`, for each part of it; 0: any
    idle_seconds  without a request, or without reading the last answer
    """

    head_bytes: int
    head_seconds: float
    body_bytes: int
    body_seconds: float
    idle_seconds: float
    stalls: bool = False
    patient: bool = True  # a client that has closed its side still gets its answer; if not, it counts as gone


# Returns the content type and the body of a refusal, given its status and its text.
Say = Callable[[int, str], tuple[str, bytes]]


def in_text(status: int, text: str) -> tuple[str, bytes]:
    """Says it in a line of text."""
    return "text/plain", f"{text}\n".encode()


def serving(
    application: Application, limits: Limits, say: Say = in_text
) -> "Callable[[Callable[[], None]], Connection]":
    """Returns what makes the connections of one port, as a Listener wants it.

    The application finds in `scope["state"]`: `connection`; `certified`, whether its client has a certificate, and
    `names`, those in it.
    """
    _lower(logging.getLogger("uvicorn.error"))
    config = Config(
        application,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=round(limits.idle_seconds),
    )
    config.load()
    state = ServerState()
    return lambda on_end: Connection(config, state, limits, on_end, say)


class Connection(HttpToolsProtocol):
    """A client's connection. One writer: the loop that accepted it.

    asked    whether it has sent a whole request
    on_lost  called when it is lost while its request is answered
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        limits: Limits,
        on_end: Callable[[], None],
        say: Say = in_text,
    ) -> None:
        """`on_end` is called once the connection is closed."""
        super().__init__(config, state, {})
        self.access_log = False
        self.on_lost: Callable[[], object] | None = None
        self._say_it = say
        self.asked = False
        self._made = False
        self._limits = limits
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None
        self._within_request = False  # some of one has come, but not all
        self._within_head = True  # of the request that is on its way, or that comes next
        self._received = 0  # bytes of that request
        self._head = 0  # bytes of its head that were parsed
        self._declared = 0  # bytes of its body, by its head
        self._refusal: tuple[int, str] | None = None  # why the parser was stopped
        self._deaf = False  # what arrives is discarded
        self._half_closed = False  # the client sends no more

    @property
    def busy(self) -> bool:
        """Whether a whole request is being answered."""
        return self._answering and not self.cycle.more_body

    @property
    def _answering(self) -> bool:  # the last of the requests that have begun
        return self.cycle is not None and not self.cycle.response_complete

    def abort(self) -> bool:
        """Closes the connection, whatever is unsent; returns False if it is not made yet."""
        if not self._made:
            return False
        self.transport.abort()
        return True

    def shutdown(self) -> None:
        """Closes the connection once it answers nothing any more."""
        if self._made:
            super().shutdown()

    # From the socket.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._made = True
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert()
        self.app_state = {"connection": self, "certified": bool(certificate), "names": names(certificate)}
        self._allow(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
        self.app_state = {}  # it refers to this object, which nothing else would free
        self._on_end()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if not self._within_request:
            self._begin_request()
        self._received += len(data)
        if self._limits.stalls and not self._within_head:
            self._allow(self._limits.body_seconds)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # answered as if it had not asked for another protocol
            self._deaf = True
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            log.debug("malformed HTTP: %s", error)
            self._refuse(*self._refusal or (400, "malformed HTTP/1 request"))
        else:
            if self._within_head and self._received > self._limits.head_bytes:
                self._refuse(*self._too_long())
            elif self._received > self._limits.head_bytes + self._limits.body_bytes:
                self._refuse(413, f"request body is too long, want at most {self._limits.body_bytes} bytes")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        # A client may close its side once it has asked. A connection over TLS cannot be closed on one side only.
        self._half_closed = True
        return self._limits.patient and self.busy and not is_ssl(self.transport)

    # From the parser. An exception stops it.

    def on_message_begin(self) -> None:
        if not self._within_request:  # a further request in what has arrived
            self._begin_request()
        self._within_head = True
        self._head = 0
        self._declared = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._within_head:  # not a trailer
            self._count(len(name) + len(value) + 4)
            lowered = name.lower()
            if lowered == b"content-length" and value.isdigit():
                self._declared = int(value[:_MOST_DIGITS])
            elif lowered == b"transfer-encoding" and value.strip().lower() != b"chunked":
                self._stop(501, "transfer-encoding is not chunked alone, which is the only one that is known")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.url == b"*":  # OPTIONS of the server as a whole, which the parser of addresses does not know
            self.url = b"/*"
        if len(self.pipeline) >= _MOST_AHEAD:
            self._stop(400, f"more than {_MOST_AHEAD} requests sent ahead of their answers")
        if self._declared > self._limits.body_bytes:
            self._stop(413, f"request body is too long, want at most {self._limits.body_bytes} bytes")
        self._within_head = False
        self._allow(self._limits.body_seconds)
        self.server_state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.asked = True
        self._within_request = False
        self._within_head = True
        self._received = 0
        self._stop_timer()
        super().on_message_complete()

    # From the answers.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and not self._answering and not self.transport.is_closing():
            self.transport.close()
        if not (self._within_request or self._answering):
            self._allow(self._limits.idle_seconds)

    # Own.

    def _begin_request(self) -> None:
        self._within_request = True
        self._allow(self._limits.head_seconds)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self._limits.head_bytes:
            self._stop(*self._too_long())

    def _too_long(self) -> tuple[int, str]:
        return 431, f"request line and headers are too long, want at most {self._limits.head_bytes} bytes"

    def _stop(self, status: int, text: str) -> None:
        self._refusal = status, text
        raise ValueError(text)

    def _refuse(self, status: int, text: str) -> None:
        """Refuses what was sent last, in one line of text, and ends the connection."""
        self._deaf = True
        cycle = self.cycle
        if self.pipeline:
            self.abort()
        elif self.busy:  # the request before is answered, the one that is refused is not
            cycle.keep_alive = False
        elif self._answering and cycle.response_started:
            self.abort()
        else:
            if self._answering:
                cycle.disconnected = True
                cycle.message_event.set()
            self._say(status, text)

    def _say(self, status: int, text: str) -> None:
        content_type, body = self._say_it(status, text)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if is_ssl(self.transport):
            self.transport.close()
        else:
            # Closing a connection with unread data resets it, and the client loses the answer.
            self.transport.write_eof()
        self._allow(_LINGER)

    def _allow(self, seconds: float) -> None:
        """Ends the connection after so long, unless another limit replaces this one. 0: it never does."""
        self._stop_timer()
        if seconds:
            self._timer = self.loop.call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _lower(logger: logging.Logger) -> None:
    """Lets a library's records pass at debug only: what it finds wrong is about clients."""
    logger.setLevel(logging.DEBUG)
    logger.filters[:] = [_at_debug]


def _at_debug(record: logging.LogRecord) -> bool:
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger().isEnabledFor(logging.DEBUG)
