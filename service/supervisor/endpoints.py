"""The supervisor's HTTP endpoints: /livez and /readyz on one port, /metrics on another."""

import asyncio
import gzip
import json
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from convoy.service import metrics
from convoy.service.access import Callers, Scope
from convoy.service.errors import NotPermitted, UnknownCaller
from convoy.service.followed import POLL_SECONDS, Followed
from convoy.service.listener import Listener
from convoy.service.tls import Tls
from convoy.service.web.connection import Limits, serving

log = logging.getLogger(__name__)

_REST = 3  # the shortest pause between two collections, by the time that the first has taken,
_LONGEST_REST = 0.5  # but no more seconds than this
Area = Literal["probes", "metrics"]
# The body of a request is discarded. A scraper that asks every minute need not connect again.
_LIMITS = Limits(head_bytes=1 << 14, head_seconds=10, body_bytes=1 << 16, body_seconds=10, idle_seconds=75)


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

    def admit(self, authorization: bytes | None, certificate: Sequence[str]) -> None:
        """Raises UnknownCaller, NotPermitted."""
        if self.callers is not None and not self.public:
            caller = self.callers.value.identify(authorization, certificate)
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
    most: int = 64,
    recycled: metrics.Restarts = MappingProxyType({}),
    running: Callable[[], Iterable[metrics.Running]] = tuple,
) -> Callable[[bool], None]:
    """Answer on two listening sockets, in a thread with a loop of its own, as long as the process lives.

    Returns a function for other threads: while it was last called with True, others accept on the first socket.

    ready      whether the server accepts requests, and the reason if not; called in that thread, where it may not wait
    directory  the folder of the processes' metrics
    restarts   restarts of processes, counted by the supervisor
    doors      of the two ports
    most       connections of each port at a time
    recycled   processes that the supervisor has replaced, see metrics.registry
    running    those that run, called in that thread
    """
    exposition = _Exposition(metrics.registry(directory, restarts, recycled, running))
    sites = {
        "probes": (health, _Site({"/livez": _live, "/readyz": lambda _: _readiness(*ready())}, doors["probes"])),
        "metrics": (scrapes, _Site({"/metrics": exposition.page}, doors["metrics"])),
    }
    listeners = [
        Listener(listening, serving(site, _LIMITS), most, _LIMITS.head_seconds, site.door.context)
        for listening, site in sites.values()
    ]

    loop = asyncio.new_event_loop()

    async def run() -> None:
        for listener in listeners:
            listener.start()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for listener in listeners:
                listener.retire()

    threading.Thread(target=loop.run_until_complete, args=(run(),), name="http", daemon=True).start()

    def pause(paused: bool) -> None:
        loop.call_soon_threadsafe(listeners[0].pause, paused)

    return pause


Headers = Mapping[bytes, bytes]  # of a request, by name in lower case; of several of one name the first


class _Page(NamedTuple):
    status: int
    content_type: str  # empty: there is no content
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def _text(status: int, text: str, *headers: tuple[bytes, bytes]) -> _Page:
    return _Page(status, "text/plain", f"{text}\n".encode(), headers)


def _json(status: int, value: dict[str, object]) -> _Page:
    return _Page(status, "application/json", json.dumps(value).encode() + b"\n")


async def _live(_: Headers) -> _Page:
    return _json(200, {"live": True})


async def _readiness(is_ready: bool, reason: str) -> _Page:
    return _json(200 if is_ready else 503, {"ready": is_ready, **({"reason": reason} if reason else {})})


class _Site:
    """Answers GET, HEAD and OPTIONS for the pages of one port, by path: an application of ASGI."""

    def __init__(self, pages: Mapping[str, Callable[[Headers], Awaitable[_Page]]], door: Door) -> None:
        self.door = door
        self._pages = pages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(reversed(scope["headers"]))
        if await _discarded(headers, receive):
            try:
                page = await self._page(scope, headers)
            except Exception:  # the end of a request
                log.exception("an HTTP request failed")
                page = _text(500, "internal error", _CLOSE)
            await _send(page, send)

    async def _page(self, scope: Any, headers: Headers) -> _Page:
        try:
            self.door.admit(headers.get(b"authorization"), scope["state"]["names"])
        except UnknownCaller as error:
            return _text(401, error.message, (b"www-authenticate", b"Bearer"), _CLOSE)
        except NotPermitted as error:
            return _text(403, error.message, _CLOSE)
        method = scope["method"]
        if method == "OPTIONS":
            return _Page(204, "", b"", (_ALLOW,))
        if method not in ("GET", "HEAD"):
            return _text(405, "method not allowed: want GET, HEAD or OPTIONS", _ALLOW, _CLOSE)
        page = self._pages.get(scope["path"])
        if page is None:
            return _text(404, f"not found: want {' or '.join(self._pages)}")
        return await page(headers)


_ALLOW = (b"allow", b"GET, HEAD, OPTIONS")
_CLOSE = (b"connection", b"close")


async def _discarded(headers: Headers, receive: Any) -> bool:
    """Discards a request's body, so that the answer is not lost; returns whether the client is still there."""
    if b"100-continue" in headers.get(b"expect", b"").lower():
        return True  # it sends its body only if it is asked for it
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        if not message.get("more_body"):
            return True


async def _send(page: _Page, send: Any) -> None:
    headers = list(page.headers)
    if page.content_type:
        headers.append((b"content-type", page.content_type.encode()))
        headers.append((b"content-length", str(len(page.body)).encode()))
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    await send({"type": "http.response.body", "body": page.body})


class _Exposition:
    """The page of metrics. Collecting takes some 10 ms: a thread does it, once for all who ask while it is busy.

    One writer: the loop of the ports.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._rested = 0.0  # when the next collection may begin
        self._running: asyncio.Task[_Scrape] | None = None
        self._next: asyncio.Task[_Scrape] | None = None

    async def page(self, headers: Headers) -> _Page:
        """Returns the metrics as they are now or later, compressed if the client accepts that."""
        if self._next is None:
            self._next = asyncio.create_task(self._collect(self._running))
        scrape = await asyncio.shield(self._next)
        if b"gzip" not in headers.get(b"accept-encoding", b"").lower():
            return _Page(200, CONTENT_TYPE_LATEST, scrape.text)
        loop = asyncio.get_running_loop()
        packed = await loop.run_in_executor(self._thread, lambda: scrape.packed)
        return _Page(200, CONTENT_TYPE_LATEST, packed, ((b"content-encoding", b"gzip"),))

    async def _collect(self, before: "asyncio.Task[_Scrape] | None") -> "_Scrape":
        # One that has begun may have read what has changed since: who asks now shares the next one.
        if before is not None:
            await asyncio.wait([before])
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._rested - loop.time())
        self._running, self._next = self._next, None
        began = loop.time()
        text = await loop.run_in_executor(self._thread, generate_latest, self._registry)
        # It holds the GIL of the process that restarts others: whoever asks all the time gets a quarter of it at most.
        self._rested = loop.time() + min(_REST * (loop.time() - began), _LONGEST_REST)
        return _Scrape(text)


class _Scrape:
    """What one collection has found."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.text, 1)
