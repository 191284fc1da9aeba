"""The supervisor's HTTP endpoints: /livez and /readyz on one port, /metrics on another."""

import gzip
import json
import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from convoy.service import metrics
from convoy.service.access import Callers, Scope
from convoy.service.errors import ConvoyError, NotPermitted, UnknownCaller
from convoy.service.followed import Followed
from convoy.service.tls import Tls, names

log = logging.getLogger(__name__)

Area = Literal["probes", "metrics"]
_ALLOWED = "GET, HEAD, OPTIONS"
_MOST = 64  # concurrent connections per port
_MOST_BODY = 1 << 16  # bytes of a request's body, which is discarded
_TIMEOUT = 10  # seconds that a client may take for its request


class Door(NamedTuple):
    """Who may use a port. `callers` and `tls` are polled by their owner; None: everybody may, without encryption.

    public  whether it needs neither token nor certificate
    scope   what a caller must have; None: nothing
    """

    callers: Followed[Callers] | None = None
    tls: Followed[Tls] | None = None
    public: bool = False
    scope: Scope | None = None

    def context(self) -> ssl.SSLContext | None:
        """Returns the settings of TLS for the next connection."""
        if self.tls is None:
            return None
        return self.tls.value.lenient if self.public else self.tls.value.context

    def admit(self, authorization: str | None, certificate: Sequence[str]) -> None:
        """Raises UnknownCaller, NotPermitted."""
        if self.callers is not None and not self.public:
            header = None if authorization is None else authorization.encode()
            caller = self.callers.value.identify(header, certificate)
            if self.scope is not None:
                caller.need(self.scope)


OPEN: Mapping[Area, Door] = {"probes": Door(), "metrics": Door()}


def serve(
    health: socket.socket,
    scrapes: socket.socket,
    ready: Callable[[], tuple[bool, str]],
    directory: Path,
    restarts: metrics.Restarts,
    doors: Mapping[Area, Door] = OPEN,
) -> None:
    """Answer on two listening sockets, in separate threads, as long as the process lives.

    ready      whether the server accepts requests, and the reason if not; called in those threads
    directory  the folder of the processes' metrics
    restarts   restarts of processes, counted by the supervisor
    doors      of the two ports
    """
    registry = metrics.registry(directory, restarts)
    probes = {"/livez": lambda: _json(200, {"live": True}), "/readyz": lambda: _readiness(*ready())}
    exposition = {"/metrics": lambda: _Page(200, CONTENT_TYPE_LATEST, generate_latest(registry))}
    for listener, pages, door in ((health, probes, doors["probes"]), (scrapes, exposition, doors["metrics"])):
        handler = partial(_Handler, pages, door)
        server = _Server(listener.getsockname()[:2], handler, bind_and_activate=False, context=door.context)
        server.socket.close()
        server.socket = listener
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()


class _Page(NamedTuple):
    status: int
    content_type: str
    body: bytes


def _json(status: int, value: dict[str, object]) -> _Page:
    return _Page(status, "application/json", json.dumps(value).encode() + b"\n")


def _readiness(is_ready: bool, reason: str) -> _Page:
    return _json(200 if is_ready else 503, {"ready": is_ready, **({"reason": reason} if reason else {})})


class _Server(ThreadingHTTPServer):
    """Answers each connection in a thread, at most `_MOST` at a time.

    A further connection closes the oldest, which is most likely idle. `_lock` guards `_open`.
    """

    def __init__(
        self, *arguments: Any, context: Callable[[], ssl.SSLContext | None] = lambda: None, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._context = context
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # oldest first

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        context = self._context()
        if context is not None:
            # The handshake comes in the connection's own thread: nobody waits for a slow client.
            request = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            request.settimeout(_TIMEOUT)
            request.do_handshake()
        super().finish_request(request, client_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > _MOST else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that resets its connection, as load balancers' probes do, or whose certificate is refused, is not an
        # error; anything else is a bug.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError | ssl.SSLError):
            log.error("an HTTP request failed", exc_info=sys.exception())


class _Handler(BaseHTTPRequestHandler):
    """Answers GET, HEAD and OPTIONS for the pages of one port, by path."""

    timeout = _TIMEOUT
    server_version = "convoy"
    sys_version = ""

    def __init__(self, pages: Mapping[str, Callable[[], _Page]], door: Door, *arguments: Any) -> None:
        self._pages = pages
        self._door = door
        super().__init__(*arguments)  # handles the connection until it ends

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        # Closing a connection with unread data resets it, and the client loses the answer.
        length = self.headers.get("Content-Length", "") if parsed else ""
        if length.isdecimal() and "100-continue" not in self.headers.get("Expect", "").lower():
            self.rfile.read(min(int(length[:6]), _MOST_BODY))
        return parsed and self._admits()

    def _admits(self) -> bool:
        """Returns whether the caller may go on, whatever the method and the path; answers if not."""
        certificate = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        try:
            self._door.admit(self.headers.get("Authorization"), names(certificate))
        except UnknownCaller as error:
            self._refuse_with(401, error, ("WWW-Authenticate", "Bearer"))
        except NotPermitted as error:
            self._refuse_with(403, error)
        else:
            return True
        return False

    def _refuse_with(self, code: int, error: ConvoyError, *headers: tuple[str, str]) -> None:
        self.close_connection = True
        self._answer(_Page(code, "text/plain", f"{error.message}\n".encode()), *headers)

    def do_GET(self) -> None:
        page = self._pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(_Page(404, "text/plain", f"not found: want {' or '.join(self._pages)}\n".encode()))
        else:
            self._answer(page())

    do_HEAD = do_GET  # noqa: N815  the base class looks for this name

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self.send_header("Allow", _ALLOWED)
        self.end_headers()

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The base class looks for do_METHOD, and answers 501 if there is none.
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self.close_connection = True
        self._answer(_Page(405, "text/plain", b"method not allowed: want GET, HEAD or OPTIONS\n"), ("Allow", _ALLOWED))

    def _answer(self, page: _Page, *headers: tuple[str, str]) -> None:
        body = page.body
        if page.content_type == CONTENT_TYPE_LATEST and "gzip" in self.headers.get("Accept-Encoding", "").lower():
            body = gzip.compress(body, 1)
            headers = (*headers, ("Content-Encoding", "gzip"))
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        log.debug("http: " + format, *args)
