"""Answers that are compressed: for whom, which of them, and what happens meanwhile."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import grpc
import pytest

from convoy.service.frontend.transport import exchange, messages
from convoy.service.frontend.transport.messages import accepted, framed, framed_for, inflated
from tests.service.frontend.transport.raw import DATA, END_STREAM, HEADERS, SETTINGS, Raw, frame, message, request
from tests.service.frontend.transport.serving import LIMITS, SECONDS, Serving

ENCODINGS: tuple[Literal["gzip", "deflate"], ...] = ("gzip", "deflate")
MAP = b"".join(bytes([row // 16]) * 400 for row in range(400))  # a class map
NOISE = random.Random(3).randbytes(200_000)
SIZES = [0, 1, 1023, 1024, 1025, 60_000, 65_536, 65_537, 160_000]


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serving(kind: str, encoding: Literal["gzip", "deflate"]) -> Iterator[Serving]:
    with Serving(kind, LIMITS._replace(compression=encoding)) as running:
        yield running


@pytest.fixture
def gzip_http2() -> Iterator[Serving]:
    with Serving("nghttp2", LIMITS._replace(compression="gzip")) as running:
        yield running


def ask(raw: Raw, data: bytes, accepts: str | None, stream: int = 1) -> tuple[dict[str, str], int, bytes]:
    """The first headers of an answer, the flag of its message, and its bytes."""
    more = () if accepts is None else (("grpc-accept-encoding", accepts),)
    raw.send(raw.headers(stream, request("/test.Test/Echo", *more)))
    framed_ = message(data)
    for at in range(0, len(framed_), 16_384):
        last = at + 16_384 >= len(framed_)
        raw.send(frame(DATA, END_STREAM if last else 0, stream, framed_[at : at + 16_384]))
    raw.until(HEADERS, stream)
    first = raw.last_headers
    found, last_ = raw.answer(stream)
    assert last_["grpc-status"] == "0"
    assert int.from_bytes(found[1:5], "big") == len(found) - 5
    return first, found[0], found[5:]


@pytest.fixture
def raw(serving: Serving) -> Iterator[Raw]:
    with Raw(serving.address) as connection:
        connection.until(SETTINGS)  # from here on its windows are those of the server
        yield connection


def test_client_of_grpc_gets_what_was_sent(serving: Serving) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(serving.target, options) as channel:
        echo, both = channel.unary_unary("/test.Test/Echo"), channel.stream_stream("/test.Test/EchoStream")
        sent = [data[:size] for data in (MAP, NOISE) for size in SIZES]
        assert [echo(data, timeout=SECONDS) for data in sent] == sent
        assert list(both(iter(sent), timeout=SECONDS)) == sent
        with ThreadPoolExecutor(8) as callers:
            assert list(callers.map(lambda data: echo(data, timeout=SECONDS), sent * 4)) == sent * 4


@pytest.mark.parametrize("size", [50_000, 160_000])
def test_class_map_takes_a_thirtieth_of_its_bytes(raw: Raw, encoding: str, size: int) -> None:
    first, flag, data = ask(raw, MAP[:size], "identity,deflate,gzip")
    assert (first["grpc-encoding"], flag) == (encoding, 1)
    assert len(data) < size / 30
    assert inflated(data, encoding.encode(), size) == MAP[:size]


@pytest.mark.parametrize("data", [b"", MAP[:1023], NOISE[:50_000]], ids=["nothing", "short", "noise"])
def test_what_would_not_become_shorter_goes_as_it_is(raw: Raw, data: bytes) -> None:
    _, flag, found = ask(raw, data, "identity,deflate,gzip")
    assert (flag, found) == (0, data)


@pytest.mark.parametrize("accepts", [None, "identity", "br,zstd", "x-gzip,gzipped", ""])
def test_caller_that_does_not_accept_it_gets_no_compression(gzip_http2: Serving, accepts: str | None) -> None:
    with Raw(gzip_http2.address) as raw:
        first, flag, found = ask(raw, MAP[:50_000], accepts)
        assert "grpc-encoding" not in first
        assert (flag, found) == (0, MAP[:50_000])
        assert ask(raw, MAP[:50_000], "deflate, gzip", 3)[1] == 1  # as a control


@pytest.mark.parametrize("serving_kind", ["nghttp2", "grpcio"])
def test_nothing_is_compressed_unless_the_setting_says_so(serving_kind: str) -> None:
    with Serving(serving_kind) as serving, Raw(serving.address) as raw:
        first, flag, found = ask(raw, MAP[:50_000], "identity,deflate,gzip")
        assert first.get("grpc-encoding", "identity") == "identity"
        assert (flag, found) == (0, MAP[:50_000])


def test_over_grpcio_every_caller_gets_it_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A method cannot see what its caller accepts, and gRPC does not look."""
    with Serving("grpcio", LIMITS._replace(compression="gzip")) as serving, Raw(serving.address) as raw:
        assert ask(raw, MAP[:50_000], "identity")[1] == 1
    assert "grpcio sends gzip to all callers" in caplog.text


class Held:
    """Compression that waits until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self._fails = fails
        monkeypatch.setattr(exchange, "framed_for", self)

    def __call__(self, data: bytes, encoding: bytes) -> list[bytes]:
        if len(data) > 100_000:
            self.begun.set()
            assert self.free.wait(SECONDS)
            if self._fails:
                raise MemoryError
        return framed_for(data, encoding)


def unsent(serving: Serving) -> list[int]:
    return list(serving.do(lambda: [connection.unsent for connection in serving.hub.connections]))


def test_long_answer_delays_no_other_call(gzip_http2: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    with grpc.insecure_channel(gzip_http2.target) as channel:
        echo = channel.unary_unary("/test.Test/Echo")
        long = echo.future(MAP, timeout=SECONDS)
        assert held.begun.wait(SECONDS)
        assert unsent(gzip_http2) == [len(MAP)]
        assert echo(MAP[:2000], timeout=SECONDS) == MAP[:2000]
        assert not long.done()
        held.free.set()
        assert long.result() == MAP
        assert unsent(gzip_http2) == [0]


@pytest.mark.parametrize("name", ["Echo", "EchoStream"])
def test_call_ends_in_time_although_its_answer_is_not_compressed_yet(
    gzip_http2: Serving, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held = Held(monkeypatch)
    with grpc.insecure_channel(gzip_http2.target) as channel:
        both = channel.stream_stream(f"/test.Test/{name}")
        for seconds in (1.0, 4.0, 12.0):  # on a busy machine, a short time may be over before there is an answer
            with pytest.raises(grpc.RpcError) as caught:
                list(both(iter([MAP]), timeout=seconds))
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            if held.begun.is_set():
                break
        assert held.begun.is_set()
        held.free.set()
        assert channel.unary_unary("/test.Test/Echo")(MAP, timeout=SECONDS) == MAP
        assert unsent(gzip_http2) == [0]
        assert gzip_http2.do(lambda: gzip_http2.hub.rooms.calls) == 0


@pytest.mark.parametrize("name", ["Echo", "EchoStream"])
def test_caller_that_leaves_meanwhile_leaves_nothing_behind(
    gzip_http2: Serving, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held = Held(monkeypatch)
    with Raw(gzip_http2.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request(f"/test.Test/{name}", ("grpc-accept-encoding", "gzip"))))
        for at in range(0, len(message(MAP)), 16_384):
            raw.send(frame(DATA, 0, 1, message(MAP)[at : at + 16_384]))
        raw.send(frame(DATA, END_STREAM, 1))
        assert held.begun.wait(SECONDS)
    gzip_http2.do(gzip_http2.hub.emptied.wait)
    held.free.set()
    with grpc.insecure_channel(gzip_http2.target) as channel:
        assert channel.unary_unary("/test.Test/Echo")(MAP, timeout=SECONDS) == MAP
    assert gzip_http2.do(lambda: gzip_http2.hub.rooms.calls) == 0


@pytest.mark.parametrize("name", ["Echo", "EchoStream"])
def test_answer_that_cannot_be_compressed_ends_its_call(
    gzip_http2: Serving, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held = Held(monkeypatch, fails=True)
    held.free.set()
    with grpc.insecure_channel(gzip_http2.target) as channel:
        both = channel.stream_stream(f"/test.Test/{name}")
        with pytest.raises(grpc.RpcError) as caught:
            list(both(iter([MAP]), timeout=SECONDS))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert channel.unary_unary("/test.Test/Echo")(b"next", timeout=SECONDS) == b"next"


@pytest.mark.parametrize(
    ("offered", "wanted", "found"),
    [
        (b"identity,deflate,gzip", "gzip", b"gzip"),
        (b"identity, deflate , gzip", "deflate", b"deflate"),
        (b"gzip", "deflate", b"identity"),
        (b"", "gzip", b"identity"),
    ],
)
def test_encoding_is_the_wanted_one_where_it_is_offered(offered: bytes, wanted: str, found: bytes) -> None:
    assert accepted(offered, wanted) == found


def test_same_bytes_are_made_with_and_without_an_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert framed_for(MAP, b"identity") == framed(MAP)
    assert framed_for(NOISE, b"gzip") == framed(NOISE)
    monkeypatch.setattr(messages, "LEAST_COMPRESSED", 10**9)
    assert framed_for(MAP, b"gzip") == framed(MAP)
