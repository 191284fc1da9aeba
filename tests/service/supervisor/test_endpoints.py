"""The HTTP ports answer every method, and say nothing of clients that go."""

import gzip
import http.client
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import pytest

from convoy.service.supervisor import endpoints as ports


class Ports(NamedTuple):
    """Of /livez and /readyz, and of /metrics."""

    health: int
    scrapes: int


@pytest.fixture(scope="module")
def ports_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    directory: Path = tmp_path_factory.mktemp("metrics")
    with socket.create_server(("127.0.0.1", 0)) as health, socket.create_server(("127.0.0.1", 0)) as scrapes:
        ports.serve(health, scrapes, lambda: (True, ""), directory, {})
        yield Ports(health.getsockname()[1], scrapes.getsockname()[1])


@pytest.fixture(scope="module")
def port(ports_: Ports) -> int:
    return ports_.health


def _ask(port: int, method: str, path: str = "/livez") -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/nothing"])
def test_head_is_get_without_a_body(port: int, path: str) -> None:
    got, head = _ask(port, "GET", path), _ask(port, "HEAD", path)
    assert head[0] == got[0]
    assert head[1]["Content-Length"] == str(len(got[2]))
    assert head[2] == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get"])
def test_other_methods_are_not_allowed(port: int, method: str) -> None:
    status, headers, _ = _ask(port, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_options_names_the_methods(port: int) -> None:
    status, headers, body = _ask(port, "OPTIONS")
    assert (status, headers["Allow"], body) == (204, "GET, HEAD, OPTIONS", b"")


def test_a_reset_leaves_no_words(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    server = ports._Server(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with caplog.at_level(logging.INFO), server, socket.create_connection(("127.0.0.1", server.server_port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request, address = server.get_request()
        client.close()
        with request:
            server.process_request_thread(request, address)
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def _raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /livez?verbose HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    ],
)
def test_probe_is_answered_as_it_is_sent(port: int, request_: bytes) -> None:
    answer = _raw(port, request_)
    assert answer.split(b"\r\n")[0].endswith(b"200 OK")
    assert answer.endswith(b'{"live": true}\n')


def test_metrics_are_compressed_for_who_asks_for_it(ports_: Ports) -> None:
    plain = _raw(ports_.scrapes, b"GET /metrics HTTP/1.0\r\n\r\n")
    packed = _raw(ports_.scrapes, b"GET /metrics HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
    assert b"Content-Encoding: gzip" in packed
    assert b"Content-Encoding" not in plain
    assert gzip.decompress(packed.partition(b"\r\n\r\n")[2]) == plain.partition(b"\r\n\r\n")[2]


def test_idle_connections_keep_nobody_waiting_and_their_threads_are_bounded(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        assert _raw(port, b"GET /livez HTTP/1.0\r\n\r\n").endswith(b"\n")
        assert sum("process_request_thread" in thread.name for thread in threading.enumerate()) <= 2 * 64
        assert idle[0].recv(1) == b"", "the oldest is ended"
    finally:
        for connection in idle:
            connection.close()
