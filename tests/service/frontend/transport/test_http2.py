"""What the transport on libnghttp2 does on the wire, with clients other than gRPC's own."""

import asyncio
import contextlib
import itertools
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import grpclib.client
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.service.frontend.transport import nghttp2
from convoy.service.frontend.transport.choice import choose
from convoy.service.machine import HTTP2_LIBRARY
from tests.service.frontend.transport.raw import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Raw,
    frame,
    message,
    request,
)
from tests.service.frontend.transport.serving import LIMITS, SECONDS, Serving, seconds_left


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words: str, data: bytes = b"") -> bytes:
    return subprocess.run(words, input=data, capture_output=True, timeout=60, check=False).stdout


# Other clients.


def test_grpclib_gets_its_answers(http2: Serving) -> None:
    class Bytes:
        """Messages as they are."""

        __content_subtype__ = "proto"

        def encode(self, data: bytes, kind: object) -> bytes:
            return data

        def decode(self, data: bytes, kind: object) -> bytes:
            return data

    async def run() -> tuple[list[bytes], list[bytes]]:
        host, port = http2.address
        async with grpclib.client.Channel(host, port, codec=Bytes()) as channel:  # type: ignore[arg-type]
            call: Any = grpclib.client.UnaryUnaryMethod(channel, "/test.Test/Echo", bytes, bytes)
            both: Any = grpclib.client.StreamStreamMethod(channel, "/test.Test/EchoStream", bytes, bytes)
            messages = [bytes([number]) * number * 500 for number in range(60)]
            return await asyncio.gather(*map(call, messages)), await both(messages)

    messages = [bytes([number]) * number * 500 for number in range(60)]
    assert asyncio.run(run()) == (messages, messages)


def test_curl_gets_an_answer(http2: Serving, tmp_path: Path) -> None:
    curl, url = program("curl"), f"http://{http2.target}/test.Test/Echo"
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    body = run(curl, "-s", "--http2-prior-knowledge", *headers, "--data-binary", "@-", url, data=message(b"hello"))
    assert body == message(b"hello")


def test_h2load_gets_every_answer(http2: Serving, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(message(bytes(2000)))
    load = ["-n", "3000", "-c", "8", "-m", "10", "-d", str(tmp_path / "body")]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    said = run(program("h2load"), *load, *headers, f"http://{http2.target}/test.Test/Echo")
    assert b"3000 succeeded, 0 failed" in said
    assert http2.methods.counts["Echo ended"] == 3000


# What is not gRPC.


def test_plain_http_1_is_refused_in_words(http2: Serving) -> None:
    with socket.create_connection(http2.address, SECONDS) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 505 HTTP Version Not Supported\r\n")
    assert b"\r\n\r\nthis port speaks gRPC, which needs HTTP/2" in answer


@pytest.mark.parametrize("beginning", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0"])
def test_other_protocols_are_closed_in_silence(http2: Serving, beginning: bytes) -> None:
    with socket.create_connection(http2.address, SECONDS) as client:
        client.sendall(beginning + bytes(100))
        with contextlib.suppress(ConnectionResetError):
            assert client.makefile("rb").read() == b""


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"content-type": "text/html"}, "415"),
        ({"content-type": "application/grpc-web"}, "415"),
        ({"content-type": ""}, "415"),
        ({":method": "GET"}, "405"),
        ({"content-type": "application/grpc+proto"}, "200"),
        ({"content-type": "application/grpc;charset=utf-8"}, "200"),
    ],
)
def test_request_that_is_not_grpc_has_a_status_of_http(http2: Serving, change: dict[str, str], status: str) -> None:
    pairs = [(name, change.get(name, value)) for name, value in request()]
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, pairs) + frame(DATA, END_STREAM, 1, message(b"a")))
        raw.until(HEADERS, 1)
        assert raw.last_headers[":status"] == status
        raw.call(3)
        assert raw.answer(3)[0] == message(b"hello")


# Calls.


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), max_size=5), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_how_a_call_is_cut_into_frames_makes_no_difference(
    http2: Serving, sent: list[bytes], ends: list[int], empty_end: bool
) -> None:
    data = b"".join(map(message, sent))
    places = sorted({0, len(data), *(end % (len(data) + 1) for end in ends)})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(places)]
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/EchoStream")))
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1 and not empty_end
            raw.send(frame(DATA, END_STREAM if last else 0, 1, piece))
        if empty_end or not pieces:
            raw.send(frame(DATA, END_STREAM, 1))
        answered, trailers = raw.answer(1)
    assert answered == data
    assert trailers["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "13"),
        (message(b"a") + message(b"b"), "13"),
        (message(b"a")[:-1], "13"),
        (message(b"a") + b"\0", "13"),
        (message(b"a", flag=1), "13"),
        (message(b"a", flag=7), "13"),
        (message(b"a"), "0"),
    ],
)
def test_unary_call_has_exactly_one_message(http2: Serving, body: bytes, status: str) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request()) + frame(DATA, END_STREAM, 1, body))
        assert raw.status(1) == status
        raw.send(raw.headers(3, request(), END_HEADERS | END_STREAM))
        assert raw.status(3) == "13"
        raw.call(5)
        assert raw.status(5) == "0"


def test_stream_that_ends_inside_a_message_is_internal(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/EchoStream")))
        raw.send(frame(DATA, END_STREAM, 1, message(b"a") + message(b"b")[:-1]))
        answered, trailers = raw.answer(1)
    assert trailers["grpc-status"] == "13"
    assert answered in (message(b"a"), b"")


def test_unknown_encoding_is_unimplemented_and_the_known_ones_are_named(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/Echo", ("grpc-encoding", "br"))))
        _, trailers = raw.answer(1)
    assert trailers["grpc-status"] == "12"
    assert trailers["grpc-message"] == "grpc-encoding is 'br', want identity, deflate or gzip"
    assert trailers["grpc-accept-encoding"] == "identity,deflate,gzip"


def test_error_before_a_message_is_one_frame(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.call(1, b"full up", "/test.Test/Refuse")
        found = raw.until(HEADERS, 1)
    assert found.flags & END_STREAM
    assert raw.last_headers[":status"] == "200"
    assert raw.last_headers["content-type"] == "application/grpc"
    assert (raw.last_headers["grpc-status"], raw.last_headers["grpc-message"]) == ("8", "full up")
    assert not raw.last_headers["grpc-status-details-bin"].endswith("=")


def test_caller_that_still_sends_is_told_with_no_error_to_stop(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/Leave")) + frame(DATA, 0, 1, message(b"a")))
        assert raw.answer(1)[1]["grpc-status"] == "0"
        assert raw.until(RST_STREAM, 1).code == 0
        raw.send(raw.headers(3, request("/test.Test/Nothing")))
        assert raw.status(3) == "12"
        assert raw.until(RST_STREAM, 3).code == 0


@pytest.mark.parametrize(
    ("timeout", "status"), [("99999999H", "0"), ("0n", "4"), ("1n", "4"), ("50m", "4"), ("soon", "13"), ("9S", "0")]
)
def test_every_timeout_is_kept(http2: Serving, timeout: str, status: str) -> None:
    name = "Echo" if status == "0" else "Wait"
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request(f"/test.Test/{name}", ("grpc-timeout", timeout))))
        raw.send(frame(DATA, END_STREAM, 1, message(b"a")))
        assert raw.status(1) == status


def test_deadline_counts_from_the_headers_not_from_the_message(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/Echo", ("grpc-timeout", "20S"))))
        raw.send(frame(PING, payload=bytes(8)))
        raw.until(PING)  # the headers have been read
        time.sleep(0.3)
        raw.send(frame(DATA, END_STREAM, 1, message(b"a")))
        assert raw.status(1) == "0"
        (deadline,) = http2.methods.deadlines
        assert seconds_left(deadline) < 19.8
        began = time.monotonic()
        raw.send(raw.headers(3, request("/test.Test/Echo", ("grpc-timeout", "200m"))))
        assert raw.status(3) == "4"  # its message never comes
        assert 0.15 < time.monotonic() - began < SECONDS


def test_trailers_of_a_request_end_it(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request()) + frame(DATA, 0, 1, message(b"a")))
        raw.send(raw.headers(1, [("some-trailer", "x")], END_HEADERS | END_STREAM))
        assert raw.answer(1)[0] == message(b"a")


def test_padding_and_unknown_frames_are_ignored(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(raw.headers(1, request()) + frame(0x77, 0xFF, 1, b"new") + frame(0x55, 0, 0, b""))
        raw.send(frame(DATA, END_STREAM | 8, 1, b"\x09" + message(b"a") + bytes(9)))
        assert raw.answer(1)[0] == message(b"a")


def test_windows_are_large_and_given_back_as_messages_arrive(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        found = raw.until(SETTINGS)
        values = {
            int.from_bytes(found.payload[at : at + 2], "big"): int.from_bytes(found.payload[at + 2 : at + 6], "big")
            for at in range(0, len(found.payload), 6)
        }
        assert values == {3: LIMITS.calls, 4: 4 << 20, 5: 1 << 20, 6: LIMITS.metadata_bytes}
        raw.until(WINDOW_UPDATE, 0)
        given = 0
        body = message(bytes(3 << 20))
        raw.send(raw.headers(1, request()))
        for at in range(0, len(body), 1 << 20):
            last = at + (1 << 20) >= len(body)
            raw.send(frame(DATA, END_STREAM if last else 0, 1, body[at : at + (1 << 20)]))
        while not given:
            given = int.from_bytes(raw.until(WINDOW_UPDATE, 1).payload, "big")
    assert given >= 2 << 20


def test_answers_are_sent_as_the_windows_of_the_caller_allow(http2: Serving) -> None:
    with Raw(http2.address, settings={4: 1000}) as raw:
        raw.call(1, bytes(5000))
        got = 0
        while got < 5005:
            part = len(raw.until(DATA, 1).payload)
            assert part <= 1000
            got += part
            raw.send(frame(WINDOW_UPDATE, 0, 1, part.to_bytes(4, "big")))
        assert raw.until(HEADERS, 1).flags & END_STREAM


def test_pings_are_answered(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.send(frame(PING, payload=b"12345678"))
        found = raw.until(PING)
        assert (found.flags, found.payload) == (ACK, b"12345678")


def test_pings_beyond_the_strikes_end_the_connection_and_answers_reset_the_count() -> None:
    ping = frame(PING, payload=bytes(8))
    with Serving("nghttp2", LIMITS._replace(min_ping_seconds=60)) as serving, Raw(serving.address) as raw:
        for stream in range(1, 21, 2):
            raw.send(ping + ping)  # the first is not too soon
            raw.call(stream)
            assert raw.status(stream) == "0"
        raw.send(ping * 4)
        found = raw.until(GOAWAY)
        assert (found.code, found.payload[8:]) == (11, b"too_many_pings")
        raw.wait_for_end()


def test_server_that_leaves_serves_what_is_connected_and_nobody_else(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.call(1, path="/test.Test/Wait")
        http2.methods.wait_for("Wait begun")
        leaving = asyncio.run_coroutine_threadsafe(http2._transport.leave(SECONDS, SECONDS), http2._loop)
        assert raw.until(GOAWAY).code == 0
        raw.call(3)  # sent before the caller has seen it
        assert raw.status(3) == "0"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(http2.address, SECONDS)
        raw.send(raw.headers(5, request("/test.Test/Echo")))
        raw.send(frame(PING, ACK, 0, bytes(8)))
        assert raw.until(GOAWAY).payload[:4] == (5).to_bytes(4, "big")
        assert not leaving.done()  # a request has begun to arrive
        raw.send(frame(DATA, END_STREAM, 5, message(b"late")))
        assert raw.status(5) == "0"
        leaving.result(SECONDS)
        http2.release()
        assert raw.status(1) == "0"


def test_caller_that_does_not_answer_delays_a_server_that_leaves_for_a_moment_only(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.call(1)
        assert raw.status(1) == "0"
        asyncio.run_coroutine_threadsafe(http2._transport.leave(0.1, 0.1), http2._loop).result(SECONDS)
        assert raw.until(GOAWAY).code == 0


def test_connections_that_wait_to_be_accepted_are_served_by_a_server_that_leaves(http2: Serving) -> None:
    async def connect_and_leave() -> tuple[Raw, asyncio.Task[None]]:
        raw = Raw(http2.address)  # the loop is here, and accepts nothing meanwhile
        leaving = asyncio.create_task(http2._transport.leave(SECONDS, SECONDS))
        await asyncio.sleep(0)
        return raw, leaving

    raw, _ = asyncio.run_coroutine_threadsafe(connect_and_leave(), http2._loop).result(SECONDS)
    with raw:
        raw.call(1)
        assert raw.status(1) == "0"


def test_server_that_stops_says_so_twice_and_answers_what_came_between(http2: Serving) -> None:
    with Raw(http2.address) as raw:
        raw.call(1)
        assert raw.status(1) == "0"
        raw.call(3, path="/test.Test/Wait")
        http2.methods.wait_for("Wait begun")
        stopping = asyncio.run_coroutine_threadsafe(http2._transport.stop(SECONDS), http2._loop)
        found = raw.until(GOAWAY)
        assert (found.code, int.from_bytes(found.payload[:4], "big")) == (0, 2**31 - 1)
        raw.call(5)  # sent before the caller has seen it
        assert raw.status(5) == "0"
        raw.send(frame(PING, ACK, 0, bytes(8)))
        found = raw.until(GOAWAY)
        assert (found.code, int.from_bytes(found.payload[:4], "big")) == (0, 5)
        raw.call(7)  # refused: the caller knew
        http2.release()
        assert raw.status(3) == "0"
        assert raw.wait_for_end() in (0, None)
        stopping.result(SECONDS)


# The library.


def test_library_knows_its_version_and_one_that_is_not_there_is_told() -> None:
    assert nghttp2.Library().version[0].isdigit()
    with pytest.raises(nghttp2.NoLibrary, match=r"libnothing\.so is not installed"):
        nghttp2.Library("libnothing.so")


def test_library_that_lacks_a_function_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __getattr__(self, name: str) -> Any:
            if name == "nghttp2_option_set_max_continuations":
                raise AttributeError(name)
            return getattr(real, name)

        def __dir__(self) -> list[str]:
            return dir(real)

    real = nghttp2.ffi.dlopen(HTTP2_LIBRARY)

    class Fake:
        def __getattr__(self, name: str) -> Any:
            return (lambda name: Old()) if name == "dlopen" else getattr(nghttp2_ffi, name)

    nghttp2_ffi = nghttp2.ffi
    monkeypatch.setattr(nghttp2, "ffi", Fake())
    with pytest.raises(nghttp2.NoLibrary, match="lacks nghttp2_option_set_max_continuations"):
        nghttp2.Library()


def test_grpcio_is_chosen_where_the_library_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto").name == "nghttp2"

    def missing(name: str = "") -> None:
        raise nghttp2.NoLibrary("libnghttp2.so.14 is not installed")

    monkeypatch.setattr(nghttp2, "Library", missing)
    choice = choose("auto")
    assert (choice.name, choice.version) == ("grpcio", grpc.__version__)
    assert choice.extension == "convoy_transport:grpcio"
    with pytest.raises(nghttp2.NoLibrary):
        choose("nghttp2")
