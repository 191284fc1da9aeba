"""The HTTP ports answer every method, and say nothing of clients that go."""

import gzip
import http.client
import itertools
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry

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


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
def test_other_methods_are_not_allowed(port: int, method: str) -> None:
    status, headers, _ = _ask(port, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_options_names_the_methods(port: int) -> None:
    status, headers, body = _ask(port, "OPTIONS")
    assert (status, headers["Allow"], body) == (204, "GET, HEAD, OPTIONS", b"")


def test_a_reset_leaves_no_words(
    port: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for sent in (b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(sent)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert _ask(port, "GET")[0] == 200  # later than those
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def _raw(port: int, request: bytes, *, half_close: bool = True) -> bytes:
    """All that comes back. A client that has sent everything may close its side."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /livez?verbose HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nMore: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"GET http://x/livez HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_probe_is_answered_as_it_is_sent(port: int, request_: bytes) -> None:
    answer = _raw(port, request_)
    assert answer.split(b"\r\n")[0].endswith(b"200 OK")
    assert answer.endswith(b'{"live": true}\n')


def test_metrics_are_compressed_for_who_asks_for_it(ports_: Ports) -> None:
    plain = _raw(ports_.scrapes, b"GET /metrics HTTP/1.0\r\n\r\n")
    packed = _raw(ports_.scrapes, b"GET /metrics HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
    assert b"content-encoding: gzip" in packed
    assert b"content-encoding" not in plain
    assert gzip.decompress(packed.partition(b"\r\n\r\n")[2]) == plain.partition(b"\r\n\r\n")[2]


def test_client_that_closes_nothing_has_its_answer_at_once(port: int) -> None:
    for version, header in (("1.0", ""), ("1.1", "Connection: close\r\n")):
        assert _raw(port, f"GET /livez HTTP/{version}\r\n{header}\r\n".encode(), half_close=False).endswith(b"\n")


def test_connection_serves_one_request_after_the_other(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    first = connection.sock
    for path, status in (("/livez", 200), ("/nothing", 404), ("/readyz", 200)):
        connection.request("GET", path, body=b"ignored")
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, connection.sock) == (status, first)
    connection.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # the beginning of TLS
        (b"get /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /" + 20_000 * b"x" + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + 20_000 * b"x", 431),
        (b"GET / HTTP/1.1\r\n" + 4000 * b"x: y\r\n" + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + 500_000 * b"x", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + 30_000 * b"1\r\nx\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + 30_000 * b"x: y\r\n", 413),
    ],
)
def test_what_is_no_request_or_too_long_is_refused_in_one_line(port: int, request_: bytes, status: int) -> None:
    answer = _raw(port, request_, half_close=False)
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert f" {status} ".encode() in head.splitlines()[0]
    assert b"connection: close" in head
    assert body.endswith(b"\n")
    assert len(body.splitlines()) == 1
    assert not any(word in body.lower() for word in (b"convoy", b"uvicorn", b"traceback", b"python"))


def test_who_sends_too_many_requests_ahead_loses_the_answers(port: int) -> None:
    request = b"GET /livez HTTP/1.1\r\n\r\n"
    assert _raw(port, 10 * request).count(b"200 OK") == 10
    assert _raw(port, 20 * request, half_close=False) == b""


def test_fault_of_a_page_is_one_line_for_the_client_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def fail() -> tuple[bool, str]:
        raise RuntimeError("secret")

    with socket.create_server(("127.0.0.1", 0)) as health, socket.create_server(("127.0.0.1", 0)) as scrapes:
        ports.serve(health, scrapes, fail, tmp_path, {})
        status, _, body = _ask(health.getsockname()[1], "GET", "/readyz")
    assert (status, body) == (500, b"internal error\n")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "an HTTP request failed")
    ]


def test_connections_that_drip_keep_nobody_waiting_and_need_no_threads(port: int) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        dripping = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(400)]
        for connection in dripping[-64:]:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost")
        for _ in range(20):
            assert _raw(port, b"GET /livez HTTP/1.0\r\n\r\n").endswith(b"\n")
        assert threading.active_count() <= threads
        assert dripping[0].recv(1) == b"", "the oldest is ended"


def test_probes_are_answered_while_metrics_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collecting, go_on = threading.Event(), threading.Event()
    collections = []

    def collect(registry: CollectorRegistry) -> bytes:
        collections.append(registry)
        collecting.set()
        assert go_on.wait(20)
        return b"metrics\n"

    monkeypatch.setattr(ports, "generate_latest", collect)
    with socket.create_server(("127.0.0.1", 0)) as health, socket.create_server(("127.0.0.1", 0)) as scrapes:
        ports.serve(health, scrapes, lambda: (True, ""), tmp_path, {})
        with ExitStack() as stack:
            scrapers = []
            for _ in range(10):
                scraper = stack.enter_context(socket.create_connection(scrapes.getsockname(), timeout=20))
                scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                scrapers.append(scraper)
            assert collecting.wait(20)
            assert _ask(health.getsockname()[1], "GET")[0] == 200
            go_on.set()
            for scraper in scrapers:
                assert b"".join(iter(lambda each=scraper: each.recv(65536), b"")).endswith(b"metrics\n")
    assert len(collections) <= 3, "who asks during a collection shares the next one"


def test_flood_of_scrapes_leaves_most_of_the_time_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[tuple[float, float]] = []

    def collect(registry: CollectorRegistry) -> bytes:
        began = time.monotonic()
        threading.Event().wait(0.02)
        collected.append((began, time.monotonic()))
        return b"metrics\n"

    monkeypatch.setattr(ports, "generate_latest", collect)
    with socket.create_server(("127.0.0.1", 0)) as health, socket.create_server(("127.0.0.1", 0)) as scrapes:
        ports.serve(health, scrapes, lambda: (True, ""), tmp_path, {})
        for _ in range(6):
            assert _raw(scrapes.getsockname()[1], b"GET /metrics HTTP/1.0\r\n\r\n").endswith(b"metrics\n")
    for (began, ended), (next_began, _) in itertools.pairwise(collected):
        assert next_began - ended >= min(2.9 * (ended - began), 0.49)
