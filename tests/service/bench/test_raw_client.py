"""The raw client against real transports, and against a server that breaks off."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import h2.events
import pytest
import uvloop

from convoy.service.bench import calls, raw_client
from convoy.service.bench.calls import Outcome, Refusal, Send, Workload
from convoy.service.errors import BadConfig
from tests.service.frontend.transport.serving import LIMITS, SECONDS, Serving
from tests.service.running import skip_without

Asks = Callable[[Send], Awaitable[None]]


@pytest.fixture(autouse=True)
def _library():
    skip_without("nghttp2")


@pytest.fixture(params=["nghttp2", "grpcio"])
def serving(request):
    with Serving(request.param) as running:
        yield running


@pytest.fixture
def http2():
    with Serving("nghttp2") as running:
        yield running


def workload(method, *bodies, answers=None):
    """The bodies in turn; what comes back is appended to `answers`."""

    def read(number, answer):
        if answers is not None:
            answers.append(answer)
        return Outcome(0, 1, (), ())

    body = lambda number: bodies[number % len(bodies)]  # noqa: E731
    return Workload(f"/test.Test/{method}", body, read, lambda number: 1, read, len(bodies))


def loaded(target, work: Workload, asks: Asks, deadline=SECONDS, loop=uvloop.new_event_loop) -> None:
    async def play():
        client = raw_client.RawClient(target, deadline)
        await asks(raw_client.unary(client, work, 0, server=target, deadline=deadline))
        client.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(play(), 3 * SECONDS))


async def all_answered(send, count):
    for outcome in await asyncio.gather(*(send(number) for number in range(count))):
        assert outcome == Outcome(0, 1, (), ())


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_answers_of_every_size_arrive_whole(serving, loop):
    bodies = [bytes([size % 251]) * size for size in (0, 1, 10_000, 70_000, 3_000_000)]
    answers = []
    loaded(serving.target, workload("Echo", *bodies, answers=answers), lambda send: all_answered(send, 30), loop=loop)
    assert sorted(answers) == sorted(bodies * 6)


def refusals_of_grpcio(target, work, count):
    async def play():
        async with calls.connect(target) as channel:
            send = calls.unary(channel, work, 0, server=target, deadline=SECONDS)
            return [await send(number) for number in range(count)]

    return asyncio.run(play())


@pytest.mark.parametrize("method", ["Refuse", "Fail", "Nothing"])
def test_refusals_are_those_that_the_other_client_reports(serving, method):
    found = []
    work = workload(method, b"full house", "bad: 100 % größer".encode(), b"")

    async def asks(send):
        found.extend([await send(number) for number in range(3)])

    loaded(serving.target, work, asks)
    assert all(outcome.refused for outcome in found)
    assert found == refusals_of_grpcio(serving.target, work, 3)


def test_refusal_before_the_request_is_complete_ends_the_call_alone(http2):
    async def asks(send):
        large, small = await asyncio.gather(send(0), send(1))
        assert large.refused[0].name == "RESOURCE_EXHAUSTED"
        assert small.answered == 1

    loaded(http2.target, workload("Echo", bytes(4 * LIMITS.message_bytes), b"small"), asks)


def test_call_ends_at_its_deadline_and_the_server_knows_it(http2):
    async def asks(send):
        assert (await send(0)).refused == (
            Refusal("DEADLINE_EXCEEDED", f"no answer from {http2.target} within {deadline:g} seconds"),
        )

    for deadline in (0.2, 2.0, 10.0):  # on a busy machine, a short time may be over before the server has the call
        loaded(http2.target, workload("Wait", b"x"), asks, deadline=deadline)
        if http2.methods.counts["Wait begun"]:
            break
    http2.methods.wait_for("Wait cancelled")


def test_deadline_passes_where_the_server_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"

        async def asks(send):
            outcomes = await asyncio.gather(send(0), send(1))
            assert [outcome.refused[0].name for outcome in outcomes] == ["DEADLINE_EXCEEDED"] * 2

        loaded(target, workload("Echo", b"x"), asks, deadline=0.2)


def test_calls_beyond_what_the_server_allows_at_once_wait():
    with Serving("nghttp2", LIMITS._replace(connection_calls=2)) as running:
        loaded(running.target, workload("Echo", b"x" * 100_000), lambda send: all_answered(send, 50))


def test_lost_connection_fails_its_calls_and_the_next_call_opens_another(http2):
    def lose():
        for connection in list(http2.hub.connections):
            connection.end("test")

    async def asks(send):
        asked = asyncio.ensure_future(send(0))
        await asyncio.to_thread(http2.methods.wait_for, "Wait begun")
        http2.do(lose)
        (refused,) = (await asked).refused
        assert refused.name == "UNAVAILABLE"
        assert refused.message.startswith(f"{http2.target} ended the call")
        http2.release()
        assert (await send(1)).answered == 1

    loaded(http2.target, workload("Wait", b"x"), asks)


def test_connection_that_the_server_leaves_ends_its_calls_and_others_use_another(http2):
    def leave():
        for connection in list(http2.hub.connections):
            connection.lifetime.leave(SECONDS)

    async def asks(send):
        first = asyncio.ensure_future(send(0))
        await asyncio.to_thread(http2.methods.wait_for, "Wait begun")
        http2.do(leave)
        seconds = []
        while http2.do(lambda: len(http2.hub.connections)) < 2:  # until the notice has arrived
            seconds.append(asyncio.ensure_future(send(1)))
            await asyncio.sleep(0)
        http2.release()
        outcomes = await asyncio.gather(first, *seconds)
        assert [outcome.answered for outcome in outcomes] == [1] * len(outcomes)

    loaded(http2.target, workload("Wait", b"x"), asks)


def test_calls_that_wait_for_a_connection_that_the_server_leaves_use_another():
    def leave():
        for connection in list(running.hub.connections):
            connection.lifetime.leave(SECONDS)

    async def asks(send):
        asked = [asyncio.ensure_future(send(number)) for number in range(20)]
        await asyncio.to_thread(running.methods.wait_for, "Wait begun", 2)
        running.do(leave)
        running.release()
        outcomes = await asyncio.gather(*asked)
        assert outcomes == [Outcome(0, 1, (), ())] * 20

    with Serving("nghttp2", LIMITS._replace(connection_calls=2)) as running:
        loaded(running.target, workload("Wait", b"x"), asks)


def test_server_that_is_not_there_fails_every_call_and_leaves_the_loop_its_turns():
    taken = socket.socket()  # bound, but not listening: nobody else gets the port meanwhile
    taken.bind(("127.0.0.1", 0))
    target = f"127.0.0.1:{taken.getsockname()[1]}"
    said = f"no answer from {target} (Connection refused): is a Convoy server running there?"

    async def asks(send):
        turns = 0

        async def count():
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.ensure_future(count())
        for number in range(20):
            assert (await send(number)).refused == (Refusal("UNAVAILABLE", said),)
        counting.cancel()
        assert turns >= 10

    with taken:
        loaded(target, workload("Echo", b"x"), asks)


def test_server_that_closes_every_connection_fails_every_call():
    async def play():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = raw_client.RawClient(target, SECONDS)
        send = raw_client.unary(client, workload("Echo", b"x"), 0, server=target, deadline=SECONDS)
        names = [(await send(number)).refused[0].name for number in range(3)]
        client.close()
        server.close()
        assert names == ["UNAVAILABLE"] * 3

    asyncio.run(asyncio.wait_for(play(), 2 * SECONDS))


class Scripted:
    """An HTTP/2 server that treats the requests of its n-th connection as the n-th of `scripts` says; the last one
    goes on.

    goaway   leaves without having accepted any request
    refuse   resets the request as not accepted
    reset    resets the request as an internal error
    plain    answers with HTTP status 503, not as gRPC
    answer   answers
    """

    def __init__(self, *scripts: str) -> None:
        self.scripts = scripts
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        writer.write(state.data_to_send())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded):
                        self._treat(script, state, event.stream_id)
                writer.write(state.data_to_send())
        writer.close()

    def _treat(self, script: str, state: h2.connection.H2Connection, number: int) -> None:
        if script == "goaway":
            state.close_connection(last_stream_id=0)
        elif script in ("refuse", "reset"):
            state.reset_stream(number, 7 if script == "refuse" else 2)
        elif script == "plain":
            state.send_headers(number, [(":status", "503")], end_stream=True)
        else:
            state.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
            state.send_data(number, raw_client.framed(b"here"))
            state.send_headers(number, [("grpc-status", "0")], end_stream=True)


@pytest.mark.parametrize(
    ("scripts", "outcome"),
    [
        (["goaway", "answer"], "answered"),
        (["goaway", "goaway", "answer"], "UNAVAILABLE"),  # once is enough
        (["refuse"], "UNAVAILABLE"),
        (["reset"], "INTERNAL"),
        (["plain"], "UNAVAILABLE"),
        (["answer"], "answered"),
    ],
)
def test_call_that_the_server_has_not_accepted_is_sent_once_more(scripts, outcome):
    async def play():
        scripted = Scripted(*scripts)
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = raw_client.RawClient(target, SECONDS)
        found = await raw_client.unary(client, workload("Echo", b"x"), 0, server=target, deadline=SECONDS)(0)
        client.close()
        server.close()
        assert (found.refused[0].name if found.refused else "answered") == outcome

    asyncio.run(asyncio.wait_for(play(), 2 * SECONDS))


def test_requests_that_are_too_large_together_are_made_when_they_are_sent(monkeypatch):
    work = workload("Echo", b"one", b"two", b"three")
    before = [raw_client.prepared(work)(number) for number in range(6)]
    monkeypatch.setattr(raw_client, "_PREPARED_BYTES", 8)
    assert [raw_client.prepared(work)(number) for number in range(6)] == before
    assert before[:2] == [b"\0\0\0\0\3one", b"\0\0\0\0\3two"]


def test_timings_are_read_in_the_first_answer_and_in_one_of_sixteen():
    answers = {"read": 0, "skim": 0}

    def counted(name):
        def read(number, answer):
            answers[name] += 1
            return Outcome(0, 1, (), ())

        return read

    work = workload("Echo", b"x")._replace(read=counted("read"), skim=counted("skim"))
    with Serving("nghttp2") as running:
        loaded(running.target, work, lambda send: all_answered(send, 33))
    assert answers == {"read": 3, "skim": 30}


@pytest.mark.parametrize(
    ("seconds", "value"), [(0.001, b"1000u"), (10.0, b"10000000u"), (1000.0, b"1000000m"), (1e9, b"99999999S")]
)
def test_timeout_has_at_most_eight_digits(seconds, value):
    assert raw_client.timeout(seconds) == value


@pytest.mark.parametrize(
    ("server", "found"),
    [("127.0.0.1:8001", ("127.0.0.1", 8001)), ("[::1]:1", ("::1", 1)), ("unix:/run/x", "/run/x")],
)
def test_address_is_that_of_the_server(server, found):
    assert raw_client.address(server) == found


@pytest.mark.parametrize("server", ["localhost", "dns:///localhost:1", ":8001", "host:http"])
def test_other_addresses_are_refused(server):
    with pytest.raises(BadConfig, match="want HOST:PORT or unix:PATH"):
        raw_client.address(server)


def test_missing_library_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(raw_client.Library.__init__, "__defaults__", ("libnothing.so.1",))
    with pytest.raises(BadConfig, match=r"^--raw-client: libnothing.so.1 is not installed \(Debian's package is lib"):
        raw_client.library()
