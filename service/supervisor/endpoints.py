"""The supervisor's HTTP endpoints: /livez and /readyz on one port, /metrics on another."""

import gzip
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from convoy.service import metrics

log = logging.getLogger(__name__)

_ALLOWED = "GET, HEAD, OPTIONS"
_MOST = 64  # concurrent connections per port
_MOST_BODY = 1 << 16  # bytes of a request's body, which is discarded
_TIMEOUT = 10  # seconds that a client may take for its request


def serve(
    health: socket.socket,
    scrapes: socket.socket,
    ready: Callable[[], tuple[bool, str]],
    directory: Path,
    restarts: metrics.Restarts,
) -> None:
    """Answer on two listening sockets, in separate threads, as long as the process lives.

    ready      whether the server accepts requests, and the reason if not; called in those threads
    directory  the folder of the processes' metrics
    restarts   restarts of processes, counted by the supervisor
    """
    for listener, handler in (
        (health, _health_handler(ready)),
        (scrapes, _metrics_handler(metrics.registry(directory, restarts))),
    ):
        server = _Server(listener.getsockname()[:2], handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()


class _Server(ThreadingHTTPServer):
    """Answers each connection in a thread, at most `_MOST` at a time.

    A further connection closes the oldest, which is most likely idle. `_lock` guards `_open`.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # oldest first

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
        # A client that resets its connection, as load balancers' probes do, is not an error; anything else is a bug.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.error("an HTTP request failed", exc_info=sys.exception())


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server_version = "convoy"
    sys_version = ""

    def answer(self, status: int, content_type: str, body: bytes, encoding: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        # Closing a connection with unread data resets it, and the client loses the answer.
        length = self.headers.get("Content-Length", "") if parsed else ""
        if length.isdecimal() and "100-continue" not in self.headers.get("Expect", "").lower():
            self.rfile.read(min(int(length[:6]), _MOST_BODY))
        return parsed

    def do_HEAD(self) -> None:
        getattr(self, "do_GET")()  # noqa: B009 (each port's handler has its own)

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self.send_header("Allow", _ALLOWED)
        self.end_headers()

    def refuse(self) -> None:
        body = b"method not allowed: want GET, HEAD or OPTIONS\n"
        self.close_connection = True
        self.send_response(405)
        self.send_header("Allow", _ALLOWED)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The base class looks for do_METHOD, and answers 501 if there is none.
        if name.startswith("do_"):
            return self.refuse
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        log.debug("http: " + format, *args)


def _health_handler(ready: Callable[[], tuple[bool, str]]) -> type[_Handler]:
    class Handler(_Handler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/livez":
                    self.answer(200, "application/json", b'{"live": true}\n')
                case "/readyz":
                    is_ready, reason = ready()
                    body = json.dumps({"ready": is_ready, **({"reason": reason} if reason else {})}) + "\n"
                    self.answer(200 if is_ready else 503, "application/json", body.encode())
                case _:
                    self.answer(404, "text/plain", b"not found: want /livez or /readyz\n")

    return Handler


def _metrics_handler(registry: CollectorRegistry) -> type[_Handler]:
    class Handler(_Handler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] == "/metrics":
                text = generate_latest(registry)
                if "gzip" in self.headers.get("Accept-Encoding", "").lower():
                    self.answer(200, CONTENT_TYPE_LATEST, gzip.compress(text, 1), "gzip")
                else:
                    self.answer(200, CONTENT_TYPE_LATEST, text)
            else:
                self.answer(404, "text/plain", b"not found: want /metrics\n")

    return Handler
