"""The HTTP ports answer every method, and say nothing of clients that go."""

import http.client
import logging
import socket
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from service import http as ports
from service.processes import Restarts


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory: Path = tmp_path_factory.mktemp("metrics")
    with socket.create_server(("127.0.0.1", 0)) as health, socket.create_server(("127.0.0.1", 0)) as scrapes:
        ports.serve(health, scrapes, lambda: (True, ""), directory, Restarts({}))
        yield health.getsockname()[1]


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


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
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
