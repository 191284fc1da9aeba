"""A port ends connections that take too long, and one of those that lose least where there are too many."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from convoy.service.listener import Listener, Visitor, expendable
from convoy.service.web.connection import Limits, serving
from tests.service.certificates import Authority

LONG = Limits(head_bytes=1000, head_seconds=60, body_bytes=1000, body_seconds=60, idle_seconds=60)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Says hello once it has the whole request."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"hello\n"})


@contextmanager
def port_of(limits: Limits, most: int = 8, contexts: list[ssl.SSLContext] | None = None) -> Iterator[int]:
    """The number of a port. The last of `contexts` is for the next connection."""
    loop = asyncio.new_event_loop()
    listening = socket.create_server(("127.0.0.1", 0))
    context: Callable[[], ssl.SSLContext | None] = lambda: contexts[-1] if contexts else None  # noqa: E731
    port = listening.getsockname()[1]

    async def run() -> None:
        listener = Listener(listening, serving(application, limits), most, limits.head_seconds, context)
        listener.start()
        while not over.is_set():
            await asyncio.sleep(0.01)
            listener.retire()
        listener.close()
        await asyncio.sleep(0)

    over = threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        yield port
    finally:
        over.set()
        thread.join()
        loop.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the end of the connection."""
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    ("limit", "seconds", "sent"),
    [
        ("head_seconds", 0.2, b""),
        ("head_seconds", 0.2, b"GET / HT"),
        ("head_seconds", 0.2, b"GET / HTTP/1.1\r\nx: y\r\n"),
        ("head_seconds", 3.0, REQUEST + b"GET"),  # the first request must be in time, though the client may pause
        ("body_seconds", 0.2, b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell"),
        ("body_seconds", 0.2, b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
        ("idle_seconds", 0.2, REQUEST),
    ],
)
def test_connection_that_takes_too_long_ends(limit: str, seconds: float, sent: bytes) -> None:
    with port_of(LONG._replace(**{limit: seconds})) as port, connect(port) as connection:
        connection.sendall(sent)
        assert rest(connection).count(b"hello") == sent.startswith(REQUEST)


def test_client_that_drips_gains_no_time() -> None:
    with port_of(LONG._replace(head_seconds=0.3)) as port, connect(port) as connection:
        pause = threading.Event()
        sent = 0
        try:
            while sent < 1000:
                connection.sendall(b"x")
                sent += 1
                pause.wait(0.02)
        except OSError:
            pass
        assert sent < 1000


def test_client_that_does_not_begin_its_handshake_is_ended(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority(tmp_path).sign("server"))
    with port_of(LONG._replace(head_seconds=0.2), contexts=[context]) as port, connect(port) as connection:
        assert rest(connection) == b""


def test_connection_ends_once_the_certificates_are_others(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    contexts = []
    for name in ("server", "renewed"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.sign(name))
        contexts.append(context)
    used = contexts[:1]
    client = ssl.create_default_context(cafile=str(authority.certificate))
    with (
        port_of(LONG, contexts=used) as port,
        client.wrap_socket(connect(port), server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(REQUEST)
        answer = b""
        while not answer.endswith(b"hello\n"):
            answer += connection.recv(65536)
        used.append(contexts[1])
        assert connection.recv(1) == b""


def test_flood_of_new_connections_takes_no_answer_from_a_client() -> None:
    with port_of(LONG, most=32) as port, ExitStack() as stack:
        for _ in range(5):
            for _ in range(40):
                stack.enter_context(connect(port))
            connection = stack.enter_context(connect(port))
            connection.sendall(REQUEST)
            for _ in range(20):
                stack.enter_context(connect(port))
            connection.shutdown(socket.SHUT_WR)
            assert rest(connection).endswith(b"hello\n")


class Known:
    """A connection in a certain state, in place of a real one."""

    def __init__(self, *, asked: bool, busy: bool = False) -> None:
        self.asked = asked
        self.busy = busy

    def abort(self) -> bool:
        return False


def visitors(*rows: tuple[str, float, Known]) -> list[Visitor]:
    """From these addresses, since then, in these states."""
    with socket.socket() as any_socket:
        return [Visitor(any_socket, address, since, None, connection) for address, since, connection in rows]


SILENT, IDLE, BUSY = Known(asked=False), Known(asked=True), Known(asked=True, busy=True)


@pytest.mark.parametrize(
    ("rows", "leaving"),
    [
        ([("a", 0, IDLE), ("b", 1, SILENT), ("c", 2, SILENT)], 1),  # the oldest of those that have asked for nothing
        ([("a", 0, IDLE), ("b", 1, SILENT)], 1),
        ([("a", 0, IDLE), ("b", 9.9, SILENT)], 0),  # who has just come has time to ask
        ([("a", 0, BUSY), ("b", 9.9, SILENT)], 1),
        ([("a", 0, BUSY), ("b", 1, IDLE)], 1),
        ([("a", 0, BUSY), ("b", 1, BUSY)], 0),
        ([("a", 0, SILENT), ("b", 1, SILENT), ("b", 2, SILENT)], 1),  # the address with most of them
        ([("b", 0, IDLE), ("b", 0, IDLE), ("a", 1, SILENT)], 2),
    ],
)
def test_who_loses_least_leaves_for_a_new_connection(rows: list[tuple[str, float, Known]], leaving: int) -> None:
    found = visitors(*rows)
    assert found.index(expendable(found, 10.0)) == leaving
