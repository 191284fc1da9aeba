"""Callers that are hostile or broken: each ends its own connection at most, and a good one beside it is served."""

import asyncio
import contextlib
import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from convoy.service.frontend.transport import connection, exchange, hub, lifetime, opening
from convoy.service.frontend.transport.connection import Connection
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Raw,
    frame,
    message,
    request,
)
from tests.service.frontend.transport.serving import LIMITS, SECONDS, Serving


class Neighbour:
    """A good client that calls all the time."""

    def __init__(self, target: str) -> None:
        self.answers = 0
        self.failures: list[Exception] = []
        self._target = target
        self._answered, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._target, options) as channel:
            call = channel.unary_unary("/test.Test/Greet")
            while not self._over.is_set() or self.answers < 10:
                try:
                    assert call(b"day", timeout=SECONDS) == b"good day"
                except Exception as error:
                    self.failures.append(error)
                    return
                self.answers += 1
                self._answered.set()

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        self._answered.wait(SECONDS)  # what a test changes from now on is not for a connection that is being made
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)


@pytest.fixture
def attacked(http2: Serving) -> Iterator[Serving]:
    """A server with a good client that must get all its answers; nothing is left of the others afterwards."""
    with Neighbour(http2.target) as neighbour:
        yield http2
    assert not neighbour.failures
    assert neighbour.answers >= 10
    assert_nothing_is_left(http2)


def assert_nothing_is_left(serving: Serving) -> None:
    gc.collect()  # clients in this process may close their connections no earlier
    until = time.monotonic() + SECONDS
    # One look decides: at the next one, a connection may be there that waited to be accepted.
    while (left := serving.do(lambda: (serving.hub.rooms.calls, len(serving.hub.connections)))) != (0, 0):
        assert time.monotonic() < until, left
        time.sleep(0.01)


def assert_it_serves(serving: Serving) -> None:
    with Raw(serving.address) as raw:
        raw.call(1)
        assert raw.answer(1)[0] == message(b"hello")


# Floods.


def test_rapid_reset_ends_the_connection(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        for stream in range(1, 10_001, 2):
            data = raw.headers(stream, request("/test.Test/Wait")) + frame(DATA, END_STREAM, stream, message(b""))
            raw.pour(data + frame(RST_STREAM, 0, stream, struct.pack(">I", 8)), 1)
        raw.wait_for_end()
    assert attacked.methods.counts["Wait begun"] < 2500


def test_flood_of_continuations_ends_the_connection(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.send(frame(HEADERS, 0, 1, raw.encoder.encode(request())))
        raw.pour(frame(CONTINUATION, 0, 1) * 10, 100)
        raw.wait_for_end()


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(frame(SETTINGS), id="settings"),
        pytest.param(frame(PING, payload=bytes(8)), id="ping"),
        pytest.param(frame(PRIORITY, 0, 1, bytes([0, 0, 0, 3, 7])), id="priority"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), id="window update"),
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_flood_of_frames_that_bring_nothing_ends_the_connection(attacked: Serving, flood: bytes, reads: bool) -> None:
    with Raw(attacked.address) as raw:
        for _ in range(100):
            raw.pour(flood * 500, 1)
            if reads:
                _fetch(raw.socket)
        raw.wait_for_end()


def test_flood_of_empty_data_ends_the_connection(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/EchoStream")))
        raw.pour(frame(DATA, 0, 1) * 500, 100)
        raw.wait_for_end()


def _fetch(connection: socket.socket) -> None:
    """Throws away what has arrived."""
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass
    connection.settimeout(SECONDS)


def test_flood_of_empty_messages_takes_little_more_memory_than_its_bytes(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/Deaf")))
        raw.until(SETTINGS)
        attacked.methods.wait_for("Deaf begun")
        for _ in range(200):
            raw.send(frame(DATA, 0, 1, message(b"") * 2000))
        raw.send(frame(PING, payload=bytes(8)))
        raw.until(PING)
        exchange = attacked.do(lambda: _only_stream(attacked))
        assert len(exchange._inbox) <= 64
        raw.send(frame(DATA, END_STREAM, 1))
        attacked.release()
        assert raw.answer(1)[0] == message(b"400000")


def _only_stream(serving: Serving) -> Any:
    (found,) = (
        exchange
        for each in serving.hub.connections
        for exchange in each.exchanges.values()
        if hasattr(exchange, "_inbox")
    )
    return found


# Windows.


@pytest.mark.parametrize("stream", [0, 1])
def test_window_that_overflows_ends_its_connection_or_stream(attacked: Serving, stream: int) -> None:
    with Raw(attacked.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/Wait")))
        raw.send(frame(WINDOW_UPDATE, 0, stream, b"\x7f\xff\xff\xff") * 2)
        if stream:
            assert raw.until(RST_STREAM, 1).code == 3
            raw.call(3)
            assert raw.status(3) == "0"
        else:
            assert raw.wait_for_end() == 3


def test_stream_that_sends_beyond_its_window_is_reset(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request("/test.Test/Deaf")))
        raw.pour(frame(DATA, 0, 1, message(bytes(16_000))), 400)
        assert raw.until(RST_STREAM, 1).code == 3
        raw.call(3)
        assert raw.status(3) == "0"


def test_zero_window_holds_an_answer_until_the_caller_goes(attacked: Serving) -> None:
    with Raw(attacked.address, settings={4: 0}) as raw:
        for stream in range(1, 101, 2):
            raw.call(stream, bytes(10_000))
        attacked.methods.wait_for("Echo ended", 50)
        assert_it_serves(attacked)


@pytest.mark.parametrize("window", [0, 2**31 - 1])  # held back by HTTP/2, or by TCP
def test_caller_that_never_reads_its_answers_is_ended(
    attacked: Serving, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(connection, "_MOST_UNSENT", 1 << 22)
    with Raw(attacked.address, settings={4: window}) as raw:
        raw.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535)))
        raw.until(SETTINGS)
        for stream in range(1, 1001, 2):
            with contextlib.suppress(OSError):
                raw.call(stream, bytes(100_000))
        raw.wait_for_end()
        assert attacked.methods.counts["Echo ended"] < 500


def test_caller_with_many_unread_answers_gets_no_more_calls(attacked: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_MOST_UNSENT", 1 << 20)
    with Raw(attacked.address, settings={4: 0}) as raw:
        raw.until(SETTINGS)
        for stream in range(1, 41, 2):
            raw.call(stream, bytes(100_000))
        attacked.methods.wait_for("Echo ended", 11)
        raw.call(41)
        assert raw.status(41) == "8"


def test_stream_that_is_never_read_holds_its_method_back(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.call(1, b"5000", "/test.Test/Pour")
        raw.until(HEADERS, 1)
        attacked.methods.wait_for("poured")
        time.sleep(0.2)
        assert attacked.methods.counts["poured"] < 5
        assert attacked.do(lambda: max(each.unsent for each in attacked.hub.connections)) < 1 << 20
    attacked.methods.wait_for("Pour cancelled")


# Headers.


@pytest.mark.parametrize("name", ["x", "abcde"])  # as long as none that matters, and as long as one
def test_bomb_of_headers_ends_the_connection(attacked: Serving, name: str) -> None:
    with Raw(attacked.address) as raw:
        raw.until(SETTINGS)
        # One entry of 4 kB in the table of headers, then one byte for each of its repetitions.
        first = raw.encoder.encode([*request(), (name, "y" * 4000)])
        repeat = b"\xbe"
        assert raw.encoder.encode([(name, "y" * 4000)]) == repeat
        raw.send(frame(HEADERS, END_HEADERS, 1, first + repeat * 60_000))
        raw.wait_for_end()


def test_list_of_headers_over_the_limit_is_refused(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request("/test.Test/Echo", *((f"x{number}", "y" * 500) for number in range(40)))))
        raw.send(frame(DATA, END_STREAM, 1, message(b"a")))
        assert raw.status(1) == "8"
        raw.call(3)
        assert raw.status(3) == "0"


def test_megabytes_of_headers_end_the_connection(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.send(frame(HEADERS, 0, 1, raw.encoder.encode(request())))
        more = raw.encoder.encode([("x", "y" * 10_000)], huffman=False)[:16_000]
        raw.pour(frame(CONTINUATION, 0, 1, more), 500)
        raw.wait_for_end()


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([*request(), ("Upper", "x")], id="upper case"),
        pytest.param([*request(), ("connection", "close")], id="connection"),
        pytest.param([*request(), ("transfer-encoding", "chunked")], id="transfer encoding"),
        pytest.param([*request(), ("te", "gzip")], id="te"),
        pytest.param([*request(), (":path", "/again")], id="two paths"),
        pytest.param([*request(), ("x", "a\nb")], id="line break"),
        pytest.param([*request(), ("", "empty")], id="empty name"),
        pytest.param([pair for pair in request() if pair[0] != ":path"], id="no path"),
        pytest.param([pair for pair in request() if pair[0] != ":method"], id="no method"),
        pytest.param([("late", "x"), *request()], id="pseudo header after another"),
        pytest.param([*request(), (":unknown", "x")], id="unknown pseudo header"),
    ],
)
def test_malformed_headers_reset_their_stream_alone(attacked: Serving, pairs: list[tuple[str, str]]) -> None:
    with Raw(attacked.address) as raw:
        raw.send(raw.headers(1, pairs))
        assert raw.until(RST_STREAM, 1).code == 1
        raw.call(3)
        assert raw.status(3) == "0"
    assert attacked.methods.counts["Wait begun"] == 0


@pytest.mark.parametrize("path", ["/", "//", "/test.Test/Echo/", "/test.Test/\xff", "/" + "x" * 8000, "*", "/%2e%2e"])
def test_odd_paths_are_unimplemented(attacked: Serving, path: str) -> None:
    with Raw(attacked.address) as raw:
        raw.call(1, path=path)
        try:
            assert raw.status(1) == "12"
        except AssertionError as error:
            assert "stream was reset: 1" in str(error)  # noqa: PT017  not a path at all
        raw.call(3)
        assert raw.status(3) == "0"


# Frames out of place.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(DATA, 0, 1, b"x"), 1, id="data on a stream that never was"),
        pytest.param(frame(DATA, 0, 0, b"x"), 1, id="data on no stream"),
        pytest.param(frame(SETTINGS, 0, 1), 1, id="settings on a stream"),
        pytest.param(frame(SETTINGS, 0, 0, b"abc"), 6, id="settings of no size"),
        pytest.param(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)), 3, id="window of no size"),
        pytest.param(frame(PING, 0, 0, b"short"), 6, id="short ping"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, bytes(4)), 1, id="window update of nothing"),
        pytest.param(frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), 1, id="push promise"),
        pytest.param(frame(CONTINUATION, END_HEADERS, 1), 1, id="continuation of nothing"),
        pytest.param(frame(RST_STREAM, 0, 1, bytes(4)), 1, id="reset of a stream that never was"),
        pytest.param(frame(HEADERS, END_HEADERS, 2, b"\x83"), 1, id="even stream"),
        pytest.param(frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), 9, id="headers of no code"),
        pytest.param(b"\xff\xff\xff" + frame(DATA, 0, 1)[3:], 6, id="longest frame"),
    ],
)
def test_frame_out_of_place_ends_the_connection_with_its_code(attacked: Serving, data: bytes, code: int) -> None:
    with Raw(attacked.address) as raw:
        raw.until(SETTINGS)
        raw.send(data)
        assert raw.wait_for_end() == code


def test_data_on_a_closed_stream_changes_nothing_for_the_others(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.call(1)
        assert raw.status(1) == "0"
        raw.send(frame(DATA, 0, 1, message(b"late")))
        raw.call(3)
        found = raw.read()
        while found is not None and found.kind not in (GOAWAY, RST_STREAM) and found.stream != 3:
            found = raw.read()
        assert found is not None


def test_data_after_a_reset_is_forgotten_and_its_window_given_back(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request("/test.Test/Nothing")))
        assert raw.status(1) == "12"
        for stream in range(3, 103, 2):
            raw.send(raw.headers(stream, request("/test.Test/Nothing")))
            raw.send(frame(DATA, 0, stream, bytes(1 << 20)))
        raw.send(raw.headers(103, request()) + frame(DATA, END_STREAM, 103, message(b"a")))
        assert raw.answer(103)[0] == message(b"a")


def test_half_a_greeting_and_then_something_else_is_closed(attacked: Serving) -> None:
    with Raw(attacked.address, greet=False) as raw:
        raw.send(wire.MAGIC[:10])
        time.sleep(0.1)
        raw.send(b"something else entirely")
        raw.wait_for_end()


def test_caller_that_says_nothing_is_closed_in_the_end(attacked: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "_PREFACE_SECONDS", 0.2)
    with Raw(attacked.address, greet=False) as silent, Raw(attacked.address, greet=False) as half:
        half.send(wire.MAGIC + b"\0\0")
        silent.wait_for_end()
        half.wait_for_end()


# Bodies and sockets.


def test_body_that_never_ends_is_cut_at_the_limit(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request()))
        raw.send(frame(DATA, 0, 1, message(bytes(LIMITS.message_bytes))[: 1 << 20]))  # and no more
        raw.send(raw.headers(3, request()) + frame(DATA, 0, 3, b"\0\xff\xff\xff\xff" + bytes(100)))
        assert raw.status(3) == "8"
        body = frame(DATA, 0, 5, message(bytes(1 << 19)))
        raw.send(raw.headers(5, request()) + body + body)
        assert raw.status(5) == "13"


@pytest.mark.parametrize("name", ["Echo", "EchoStream"])
def test_requests_that_never_end_take_no_more_memory_than_is_allowed_to_all(name: str) -> None:
    body = message(bytes(3 << 20))[: 1 << 20]
    with Serving("nghttp2", LIMITS._replace(receiving_bytes=8 << 20)) as serving:
        with Raw(serving.address) as raw:
            raw.until(SETTINGS)
            for stream in range(1, 19, 2):
                raw.send(raw.headers(stream, request(f"/test.Test/{name}")) + frame(DATA, 0, stream, body))
            assert raw.status(17) == "8"
            raw.send(frame(RST_STREAM, 0, 1, bytes(4)))
            raw.send(raw.headers(19, request()) + frame(DATA, END_STREAM, 19, message(b"a")))
            assert raw.status(19) == "0"
        assert_nothing_is_left(serving)
        assert serving.do(lambda: serving.hub.receiving) == 0


@pytest.mark.parametrize("name", ["Echo", "EchoStream"])
def test_request_that_stalls_loses_its_place_and_its_memory(name: str) -> None:
    with Serving("nghttp2", LIMITS._replace(stall_seconds=1.0)) as serving:
        with Raw(serving.address) as raw:
            raw.until(SETTINGS)
            path = f"/test.Test/{name}"
            raw.send(raw.headers(1, request(path)) + frame(DATA, 0, 1, message(bytes(3 << 20))[: 1 << 20]))
            # The control: two that wait for the server, one for its answer and one for nothing.
            raw.send(raw.headers(3, request("/test.Test/EchoStream")))
            raw.call(5, path="/test.Test/Wait")
            assert raw.status(1) == "14"
            assert serving.do(lambda: serving.hub.receiving) == 0
            assert serving.do(lambda: serving.hub.rooms.calls) == 2
            raw.send(frame(DATA, END_STREAM, 3, message(b"hello")))
            assert raw.answer(3)[0] == message(b"hello")
            serving.release()
            assert raw.status(5) == "0"
        assert_nothing_is_left(serving)


def test_call_without_a_request_loses_its_place() -> None:
    with Serving("nghttp2", LIMITS._replace(stall_seconds=0.5)) as serving, Raw(serving.address) as raw:
        raw.send(raw.headers(1, request()))
        assert raw.status(1) == "14"


def test_slow_request_that_goes_on_is_served() -> None:
    seconds, parts = 60.0, 5
    least = round(seconds * exchange._LEAST_RATE)
    body = message(bytes(parts * least - 5))
    with Serving("nghttp2", LIMITS._replace(stall_seconds=seconds)) as serving, Raw(serving.address) as raw:

        def check(later: float) -> None:
            (found,) = serving.hub.connections
            found.end_stalled(serving.hub.loop.time() + later)

        raw.until(SETTINGS)
        raw.send(raw.headers(1, request("/test.Test/Wait")))
        for part in range(parts):  # no faster than it must be, by a clock that waits for it
            raw.send(frame(PING, payload=bytes(8)))
            raw.until(PING)  # what was sent before has been read
            serving.do(lambda part=part: check(part * (seconds + 1)))
            last = END_STREAM if part == parts - 1 else 0
            raw.send(frame(DATA, last, 1, body[part * least : (part + 1) * least]))
        serving.release()
        assert raw.status(1) == "0"


def test_whoever_holds_most_memory_with_half_requests_makes_room_for_others() -> None:
    body = message(bytes(3 << 20))
    with Serving("nghttp2", LIMITS._replace(receiving_bytes=8 << 20)) as serving:
        with Raw(serving.address) as hog, Raw(serving.address) as raw:
            hog.until(SETTINGS)
            for stream in range(1, 15, 2):
                hog.send(hog.headers(stream, request()) + frame(DATA, 0, stream, body[: 1 << 20]))
            while serving.do(lambda: serving.hub.receiving) < 6 << 20:
                time.sleep(0.01)
            raw.until(SETTINGS)
            raw.send(raw.headers(1, request("/test.Test/Wait")))
            for at in range(0, len(body), 1 << 20):
                raw.send(frame(DATA, END_STREAM if at + (1 << 20) > len(body) else 0, 1, body[at : at + (1 << 20)]))
            serving.methods.wait_for("Wait begun")
            serving.release()
            assert raw.status(1) == "0"
            assert serving.do(lambda: serving.hub.receiving) <= 7 << 20
        assert_nothing_is_left(serving)
        assert serving.do(lambda: serving.hub.receiving) == 0


def test_connection_with_many_calls_leaves_places_to_others() -> None:
    limits = LIMITS._replace(calls=20)
    with Serving("nghttp2", limits) as serving, Raw(serving.address) as hog, Raw(serving.address) as raw:
        raw.until(SETTINGS)  # both are connected: how many share the places decides
        hog.until(SETTINGS)
        for stream in range(1, 39, 2):
            hog.call(stream, path="/test.Test/Wait")
        assert hog.status(37) == "8"
        assert 10 < serving.do(lambda: serving.hub.rooms.calls) < 15
        raw.call(1)
        assert raw.status(1) == "0"
        serving.release()
        assert hog.status(1) == "0"


def test_silent_streams_lose_their_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with Serving("nghttp2", LIMITS._replace(calls=4)) as serving, Raw(serving.address) as raw:
        raw.until(SETTINGS)
        for stream in range(1, 9, 2):
            raw.send(raw.headers(stream, request("/test.Test/EchoStream")))
        serving.methods.wait_for("EchoStream begun", 4)
        with Raw(serving.address) as other:
            other.call(1, path="/test.Test/EchoStream")
            assert other.status(1) == "8"  # the control: they have not been silent for long
            monkeypatch.setattr(hub, "_SILENT_SECONDS", 0.2)
            for stream in range(3, 3 + 2 * 200, 2):  # one is looked for once a second at most
                other.call(stream, path="/test.Test/EchoStream")
                if (status := other.status(stream)) == "0":
                    break
                threading.Event().wait(0.1)
            assert status == "0"
        assert raw.status(1) == "14"


def test_call_that_stays_open_for_ever_ends_at_its_deadline(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.send(raw.headers(1, request("/test.Test/Echo", ("grpc-timeout", "300m"))) + frame(DATA, 0, 1, b"\0\0"))
        assert raw.status(1) == "4"
        assert raw.until(RST_STREAM, 1).code == 0


def test_half_closed_socket_is_a_caller_that_has_gone(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        raw.call(1, path="/test.Test/Wait")
        attacked.methods.wait_for("Wait begun")
        raw.socket.shutdown(socket.SHUT_WR)
        raw.wait_for_end()
    attacked.methods.wait_for("Wait cancelled")


def test_socket_that_is_torn_down_in_the_middle_of_anything_leaves_nothing_behind(attacked: Serving) -> None:
    with Raw(attacked.address) as raw:
        whole = wire.MAGIC + frame(SETTINGS) + raw.headers(1, request("/test.Test/Wait"))
        whole += frame(DATA, END_STREAM, 1, message(bytes(300)))
    for length in range(1, len(whole), 7):
        with Raw(attacked.address, greet=False) as torn:
            torn.send(whole[:length])
            torn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset


def test_storm_of_cancelled_calls_leaves_nothing_behind(attacked: Serving) -> None:
    async def run() -> None:
        async with grpc.aio.insecure_channel(attacked.target) as channel:
            for _ in range(20):
                calls = [channel.unary_unary(f"/test.Test/{name}")(b"x") for name in ("Wait", "Echo", "Late") * 10]
                await asyncio.sleep(0.005)
                for call in calls:
                    call.cancel()

    asyncio.run(run())


def test_callback_that_raises_ends_its_connection_and_is_logged(
    attacked: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(connection: Any, number: int, chunk: Any) -> None:
        if chunk[:] == message(b"trigger"):
            raise ValueError("a fault of ours")
        honest(connection, number, chunk)

    honest = Connection.on_data
    monkeypatch.setattr(Connection, "on_data", fail)
    with Raw(attacked.address) as raw:
        raw.call(1, b"trigger")
        raw.wait_for_end()
    assert "a fault of ours" in caplog.text
