"""A listening port: accepts connections, as many as it has places for, with TLS that may change meanwhile."""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

log = logging.getLogger(__name__)

_TURNS = 16  # of the loop that a new connection stays at least: it takes some of them to read its request
_BACKLOG = 4096
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY = 0.1  # seconds until it accepts again, where the system lacks resources
_PROMPT = 0.5  # seconds in which most clients send their request
_GOODBYE = 1.0  # seconds for a client's last word over TLS


class Guest(Protocol):
    """What a port must know of a connection."""

    @property
    def asked(self) -> bool:
        """Whether the client has ever sent a request."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""

    def abort(self) -> bool:
        """Closes the connection at once; returns False if it is not made yet."""

    def shutdown(self) -> Any:
        """Closes the connection once it answers nothing any more."""


@dataclass(slots=True, eq=False)
class Visitor:
    """A connection that was accepted, from then until it is closed."""

    socket: socket.socket
    address: str  # of its host
    since: float  # by the loop's clock
    context: ssl.SSLContext | None  # of its TLS
    connection: Guest

    def rank(self, now: float) -> int:
        """What it would lose if it was closed, from nothing to an answer."""
        if not self.connection.asked:
            return 0 if now - self.since >= _PROMPT else 2
        return 3 if self.connection.busy else 1

    def close(self) -> None:
        """Closes the connection at once."""
        if not self.connection.abort():
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


def expendable(visitors: Iterable[Visitor], now: float) -> Visitor:
    """Which of these, oldest first, leaves where there are too many: of those that lose least, the oldest of the
    address that has most of them.

    Least loses who has had time to send a request, and has not; then who waits between two; then who has just come;
    then who is being answered. So a client that sends its request at once has its answer, whatever others do.
    """
    by_rank: dict[int, list[Visitor]] = {}
    for visitor in visitors:
        by_rank.setdefault(visitor.rank(now), []).append(visitor)
    lowest = by_rank[min(by_rank)]
    ((heaviest, _),) = Counter(visitor.address for visitor in lowest).most_common(1)
    return next(visitor for visitor in lowest if visitor.address == heaviest)


class Listener:
    """A listening socket and its connections. One writer: the loop on which it was started."""

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[Callable[[], None]], Any],
        most: int,
        handshake_seconds: float,
        context: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        """
        make     returns the protocol of a new connection, which is a Guest; calls its argument when the connection ends
        most     connections at a time; a further one closes another
        context  the settings of TLS for the next connection; None: it is not encrypted
        """
        self._listening = listening
        self._make = make
        self._most = most
        self._handshake_seconds = handshake_seconds
        self._context = context
        self._visitors: dict[Visitor, None] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._paused = False
        self._resuming: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accepts connections from now on."""
        self._loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)
        if not self._paused:
            self._loop.add_reader(self._listening, self._accept)

    def pause(self, paused: bool) -> None:
        """Leaves new connections to other processes that listen on the same socket, or accepts them again."""
        if paused == self._paused or self._listening.fileno() < 0:
            return
        self._paused = paused
        if paused:
            self._loop.remove_reader(self._listening)
        else:
            self._loop.add_reader(self._listening, self._accept)

    async def leave(self, seconds: float) -> None:
        """Closes the connections: those that are busy when they have answered, or after so long."""
        for visitor in list(self._visitors):
            visitor.connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._visitors:
                    self._empty.clear()
                    await self._empty.wait()
        for visitor in list(self._visitors):
            visitor.close()

    def close(self, *, finally_refusing: bool = False) -> None:
        """Accepts no more connections. Those that are there stay. A second call does nothing.

        finally_refusing  nobody else accepts them, either: those that wait, and would lose a request, are the last
        """
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            if finally_refusing and not self._paused:
                self._accept()
                with suppress(OSError):  # another process that has the socket has done so already
                    self._listening.shutdown(socket.SHUT_RD)
            self._listening.close()
        if self._resuming is not None:
            self._resuming.cancel()

    def retire(self) -> None:
        """Ends connections whose TLS is not that of new ones, unless they are busy: the certificates of their clients
        may be void."""
        context = self._context()
        for visitor in list(self._visitors):
            if visitor.context is not context and not visitor.connection.busy:
                visitor.close()

    def _accept(self) -> None:
        for _ in range(max(1, min(self._most // _TURNS, _TURNS))):
            try:
                accepted, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORTAGE:
                    self._pause(error)
                    return
                continue  # the client has gone already
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                # asyncio sets it only for sockets that name their protocol: the end of an answer would wait.
                with suppress(OSError):  # the client has gone already
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._admit(accepted, address[0] if isinstance(address, tuple) else "")

    def _pause(self, error: OSError) -> None:
        log.error("no connection can be accepted now: %s", error.strerror)
        if self._visitors:
            expendable(self._visitors, self._loop.time()).close()
        self._loop.remove_reader(self._listening)
        self._resuming = self._loop.call_later(_RETRY, self._resume)

    def _resume(self) -> None:
        if not self._paused:
            self._loop.add_reader(self._listening, self._accept)

    def _admit(self, accepted: socket.socket, host: str) -> None:
        visitor: Visitor
        connection = self._make(lambda: self._forget(visitor))
        visitor = Visitor(accepted, host, self._loop.time(), self._context(), connection)
        self._visitors[visitor] = None
        task = self._loop.create_task(self._welcome(visitor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if len(self._visitors) > self._most:
            leaving = expendable(self._visitors, self._loop.time())
            self._forget(leaving)
            leaving.close()

    async def _welcome(self, visitor: Visitor) -> None:
        secured: dict[str, Any] = {}
        if visitor.context is not None:
            secured = {"ssl_handshake_timeout": self._handshake_seconds, "ssl_shutdown_timeout": _GOODBYE}

        def connection() -> Any:
            return visitor.connection

        try:
            await self._loop.connect_accepted_socket(connection, visitor.socket, ssl=visitor.context, **secured)
        except OSError:  # such as a client without TLS, or whose certificate is refused
            self._forget(visitor)

    def _forget(self, visitor: Visitor) -> None:
        self._visitors.pop(visitor, None)
        if not self._visitors:
            self._empty.set()
