"""What gRPC's own client may expect of a call, over either transport."""

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.service.calls import reason, retry_delay
from tests.service.frontend.transport.raw import (
    DATA,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    Raw,
    frame,
    message,
    request,
)
from tests.service.frontend.transport.serving import LIMITS, SECONDS, Serving, seconds_left

MIB = 1 << 20


def unary(channel: grpc.Channel, name: str = "Echo") -> Any:
    return channel.unary_unary(f"/test.Test/{name}")


def stream(channel: grpc.Channel, name: str = "EchoStream") -> Any:
    return channel.stream_stream(f"/test.Test/{name}")


def refused(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=options.pop("timeout", SECONDS), **options)
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 5, 1000, 16_384, 65_535, 65_536, 150_000, MIB, 3 * MIB])
def test_message_of_any_size_comes_back_whole(channel: grpc.Channel, size: int) -> None:
    message = bytes(index * 7 % 251 for index in range(1000)) * (size // 1000 + 1)
    assert unary(channel)(message[:size], timeout=SECONDS) == message[:size]


def test_many_callers_each_get_their_own_answer(channel: grpc.Channel) -> None:
    messages = [str(number).encode() * (1 + number % 50) for number in range(400)]
    with ThreadPoolExecutor(16) as callers:
        assert list(callers.map(lambda message: unary(channel)(message, timeout=SECONDS), messages)) == messages


def test_asyncio_client_gets_its_answers(serving: Serving) -> None:
    async def run() -> list[bytes]:
        async with grpc.aio.insecure_channel(serving.target) as channel:
            call = channel.unary_unary("/test.Test/Echo")
            both = channel.stream_stream("/test.Test/EchoStream")
            messages = [bytes([number]) * number for number in range(200)]
            streamed = [message async for message in both(iter(messages))]
            assert streamed == messages
            return list(await asyncio.gather(*(call(message, timeout=SECONDS) for message in messages)))

    assert asyncio.run(run()) == [bytes([number]) * number for number in range(200)]


def test_stream_answers_every_message_in_turn(channel: grpc.Channel) -> None:
    sizes = [0, 1, 70_000, 3, 2 * MIB, 0, 0, 999]
    assert [len(message) for message in stream(channel)(iter([bytes(size) for size in sizes]))] == sizes


def test_stream_answers_while_its_caller_still_sends(channel: grpc.Channel) -> None:
    heard = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"first"
        assert heard.wait(SECONDS)
        yield b"second"

    answers = stream(channel)(messages(), timeout=SECONDS)
    assert next(answers) == b"first"
    heard.set()
    assert list(answers) == [b"second"]


def test_stream_of_many_small_messages_is_whole(channel: grpc.Channel) -> None:
    messages = [str(number).encode() for number in range(5000)]
    assert list(stream(channel)(iter(messages), timeout=SECONDS)) == messages


def test_stream_without_a_message_ends_well(channel: grpc.Channel) -> None:
    call = stream(channel)(iter([]), timeout=SECONDS)
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_stream_that_its_method_ends_early_has_its_answer_and_status(channel: grpc.Channel) -> None:
    call = stream(channel, "Leave")(itertools.repeat(bytes(1000)), timeout=SECONDS)
    assert list(call) == [b"enough"]
    assert call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("first", [b"", b"picture"])
def test_stream_ends_with_the_refusal_of_its_method(channel: grpc.Channel, first: bytes) -> None:
    answers = stream(channel, "RefuseStream")(iter([first]), timeout=SECONDS)
    if first:
        assert next(answers) == first
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "no image"
    assert reason(caught.value) == "BAD_IMAGE"


def test_slow_reader_holds_its_sender_back(serving: Serving, channel: grpc.Channel) -> None:
    sent = itertools.count()
    last = 0

    def messages() -> Iterator[bytes]:
        nonlocal last
        for _ in range(500):
            last = next(sent)
            yield bytes(100_000)

    answers = stream(channel, "Deaf")(messages(), timeout=60)
    serving.methods.wait_for("Deaf begun")
    seen = -1
    while seen < last:  # until no more is taken from the caller
        seen = last
        time.sleep(0.2)
    assert last < 400
    serving.release()
    assert list(answers) == [b"500"]


def test_slow_caller_holds_the_method_back(serving: Serving, channel: grpc.Channel) -> None:
    # 100 MB: gRPC's client takes up to 30 of them before anybody reads, as many as it finds the line to be good for.
    answers = stream(channel, "Pour")(iter([b"1000"]), timeout=60)
    assert len(next(answers)) == 100_000
    seen = -1
    while seen < serving.methods.counts["poured"]:
        seen = serving.methods.counts["poured"]
        time.sleep(0.2)
    assert seen < 800
    assert sum(1 for _ in answers) == 999


# Refusals.


@pytest.mark.parametrize("words", ["want JPEG or PNG", "", "100 % größer", "line\nbreak\ttab", "汉字 🙂"])
def test_refusal_of_a_method_reaches_its_caller_in_words(channel: grpc.Channel, words: str) -> None:
    error = refused(unary(channel, "Refuse"), words.encode())
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, words)
    assert reason(error) == "BAD_IMAGE"


@pytest.mark.parametrize("metadata", [[], [("x-request-id", "4711")]], ids=["no name", "a name"])
@pytest.mark.parametrize("method", ["Refuse", "RefuseStream"])
def test_refused_call_is_attempted_again_by_grpcs_own_retries(
    serving: Serving, method: str, metadata: list[tuple[str, str]]
) -> None:
    """gRPC repeats no call that has been answered in part: not after a header, nor after an empty message."""
    retries = {
        "name": [{}],
        "retryPolicy": {
            "maxAttempts": 3,
            "initialBackoff": "0.01s",
            "maxBackoff": "0.01s",
            "backoffMultiplier": 1,
            "retryableStatusCodes": ["INVALID_ARGUMENT"],
        },
    }
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", json.dumps({"methodConfig": [retries]}))]
    with grpc.insecure_channel(serving.target, options) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/test.Test/{method}")(b"", timeout=SECONDS, metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert serving.methods.counts[f"{method} begun"] == 3


def test_hint_when_to_retry_travels_with_a_refusal(channel: grpc.Channel) -> None:
    error = refused(unary(channel, "Refuse"), b"full")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_delay(error) == 0.25
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


@pytest.mark.parametrize("name", ["Fail", "FailStream"])
def test_what_a_method_raises_stays_secret(channel: grpc.Channel, kind: str, name: str) -> None:
    def call(message: bytes, timeout: float) -> Any:
        return list(stream(channel, name)(iter([message]), timeout=timeout))

    error = refused(call if name == "FailStream" else unary(channel, name), b"")
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    if kind == "nghttp2":  # methods of the server raise nothing, and grpcio repeats it
        assert "secret" not in error.details()


@pytest.mark.parametrize("path", ["/test.Test/Nothing", "/nobody.Nothing/Echo", "/", "/a/b/c"])
def test_unknown_method_is_unimplemented(channel: grpc.Channel, path: str) -> None:
    assert refused(channel.unary_unary(path), b"").code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(path)(iter([b"a", b"b"]), timeout=SECONDS))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_message_over_the_limit_is_refused_and_the_connection_stays(channel: grpc.Channel) -> None:
    call = unary(channel)
    assert refused(call, bytes(LIMITS.message_bytes + 1)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(call(bytes(LIMITS.message_bytes), timeout=SECONDS)) == LIMITS.message_bytes
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(channel)(iter([b"a", bytes(LIMITS.message_bytes + 1)]), timeout=SECONDS))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(b"still here", timeout=SECONDS) == b"still here"


def test_metadata_over_the_limit_is_refused_and_the_connection_stays(channel: grpc.Channel) -> None:
    call = unary(channel)
    for kilobytes in (1, 8, 14):
        assert call(b"a", metadata=[("token", "x" * (kilobytes << 10))], timeout=SECONDS) == b"a"
    error = refused(call, b"a", metadata=[("token", "x" * (17 << 10))])
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(b"still here", metadata=[("some-bin", b"\0\xff")], timeout=SECONDS) == b"still here"


def test_more_calls_than_the_limit_are_refused(kind: str) -> None:
    with Serving(kind, LIMITS._replace(calls=4)) as serving, grpc.insecure_channel(serving.target) as channel:
        # Streams of HTTP/2 are limited as well, per connection, so that one client alone waits.
        waiting = [unary(channel, "Wait").future(b"", timeout=SECONDS) for _ in range(4)]
        serving.methods.wait_for("Wait begun", 4)
        with grpc.insecure_channel(serving.target, [("grpc.use_local_subchannel_pool", 1)]) as other:
            assert refused(unary(other), b"").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            serving.release()
            assert [call.result() for call in waiting] == [b"waited"] * 4
            assert unary(other)(b"again", timeout=SECONDS) == b"again"


@pytest.mark.parametrize("name", ["Wait", "EchoStream"])
def test_health_has_a_place_however_many_calls_or_streams_there_are(kind: str, name: str) -> None:
    with Serving(kind, LIMITS._replace(calls=4, connection_calls=100)) as serving:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(serving.target) as channel, grpc.insecure_channel(serving.target, options) as other:
            quiet = threading.Event()

            def nothing() -> Iterator[bytes]:
                quiet.wait(SECONDS)
                yield from ()

            if name == "Wait":
                waiting = [unary(channel, name).future(b"", timeout=SECONDS) for _ in range(4)]
            else:
                waiting = [stream(channel, name)(nothing(), timeout=SECONDS) for _ in range(4)]
            serving.methods.wait_for(f"{name} begun", 4)
            ask = refused(unary(other), b"") if name == "Wait" else _refused_stream(other)
            assert ask.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # the control
            check = other.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"", timeout=SECONDS) == b"\x08\x01"
            watch = other.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=SECONDS)
            assert next(watch) == b"\x08\x01"
            if name != "Wait":
                assert unary(other)(b"calls have their own places", timeout=SECONDS)
            serving.release()
            quiet.set()
            for call in waiting:
                list(call) if name != "Wait" else call.result()


def _refused_stream(channel: grpc.Channel) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(channel)(iter([b""]), timeout=SECONDS))
    return caught.value


@pytest.mark.parametrize("unit", "HMSmun")
@pytest.mark.parametrize("digits", ["0", "9", "99999999"])  # 9 s are long also where a machine stands still meanwhile
def test_every_timeout_that_grpc_can_say_is_understood(kind: str, unit: str, digits: str) -> None:
    short = digits == "0" or (unit in "mun" and digits == "9") or unit == "n"
    with Serving(kind) as serving, Raw(serving.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request("/test.Test/Echo", ("grpc-timeout", digits + unit))))
        raw.send(frame(DATA, END_STREAM, 1, message(b"hello")))
        assert raw.status(1) in (("0", "4") if short else ("0",))
        raw.call(3)
        assert raw.status(3) == "0"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_understood(channel: grpc.Channel, compression: grpc.Compression) -> None:
    message = b"picture " * 10_000
    assert unary(channel)(message, compression=compression, timeout=SECONDS) == message
    answers = stream(channel)(iter([message, b"", b"a"]), compression=compression, timeout=SECONDS)
    assert list(answers) == [message, b"", b"a"]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_message_that_inflates_beyond_the_limit_is_refused(
    channel: grpc.Channel, compression: grpc.Compression
) -> None:
    error = refused(unary(channel), bytes(LIMITS.message_bytes + 1), compression=compression)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# Deadlines and cancellation.


def test_deadline_reaches_the_method(serving: Serving, channel: grpc.Channel) -> None:
    unary(channel)(b"", timeout=30)
    unary(channel)(b"")
    bounded, unbounded = serving.methods.deadlines
    assert 0 < seconds_left(bounded) <= 31  # a client may round it up
    assert seconds_left(unbounded) == float("inf")


def test_deadline_of_years_is_as_good_as_none(serving: Serving, channel: grpc.Channel) -> None:
    assert unary(channel)(b"a", timeout=2e8) == b"a"
    (deadline,) = serving.methods.deadlines
    assert seconds_left(deadline) > 9e7


@pytest.mark.parametrize("name", ["Wait", "Late"])
def test_call_ends_at_its_deadline_and_its_task_is_cancelled(
    serving: Serving, channel: grpc.Channel, name: str
) -> None:
    for seconds in (0.3, 2.0, 10.0):  # on a busy machine, a short time may be over before the server has the call
        began = time.monotonic()
        error = refused(unary(channel, name), b"", timeout=seconds)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert seconds - 0.05 < time.monotonic() - began < SECONDS
        if serving.methods.counts[f"{name} begun"]:
            break
    serving.methods.wait_for(f"{name} ended")
    assert unary(channel)(b"next", timeout=SECONDS) == b"next"


def test_stream_and_its_task_end_at_its_deadline(serving: Serving, channel: grpc.Channel) -> None:
    heard = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"a"
        heard.wait(SECONDS)

    for seconds in (0.5, 2.0, 10.0):  # on a busy machine, a short time may be over before the first answer
        answers: list[bytes] = []
        with pytest.raises(grpc.RpcError) as caught:
            answers.extend(stream(channel)(messages(), timeout=seconds))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if answers:
            break
    assert answers == [b"a"]
    serving.methods.wait_for("EchoStream ended")
    heard.set()


def test_cancelled_call_cancels_its_task_and_leaves_the_others_alone(serving: Serving, channel: grpc.Channel) -> None:
    calls = [unary(channel, "Wait").future(b"", timeout=SECONDS) for _ in range(6)]
    serving.methods.wait_for("Wait begun", 6)
    for call in calls[::2]:
        call.cancel()
    serving.methods.wait_for("Wait cancelled", 3)
    serving.release()
    assert [call.result() for call in calls[1::2]] == [b"waited"] * 3
    assert serving.methods.counts["Wait cancelled"] == 3


def test_lost_connection_cancels_its_calls(serving: Serving) -> None:
    with grpc.insecure_channel(serving.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = unary(channel, "Wait").future(b"", timeout=60), stream(channel, "Deaf")(iter([b"a"]), timeout=60)
        serving.methods.wait_for("Wait begun")
        serving.methods.wait_for("Deaf begun")
        assert not any(call.done() for call in calls)
    serving.methods.wait_for("Wait cancelled")
    serving.methods.wait_for("Deaf cancelled")


# Health and reflection.


def test_health_of_each_name_is_checked_and_listed(serving: Serving, channel: grpc.Channel) -> None:
    states = health_pb2.HealthCheckResponse
    serving.do(lambda: serving.health.set("model", False))
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == states.SERVING
    assert health.Check(health_pb2.HealthCheckRequest(service="model"), timeout=SECONDS).status == states.NOT_SERVING
    error = refused(health.Check, health_pb2.HealthCheckRequest(service="nobody"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    listed = health.List(health_pb2.HealthListRequest(), timeout=SECONDS).statuses
    assert {name: entry.status for name, entry in listed.items()} == {"": states.SERVING, "model": states.NOT_SERVING}
    broken = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert refused(broken, b"\xff\xff").code() is grpc.StatusCode.INVALID_ARGUMENT


def test_watcher_is_told_of_every_change_and_leaves_nothing_behind(serving: Serving, channel: grpc.Channel) -> None:
    states = health_pb2.HealthCheckResponse
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="model"), timeout=SECONDS)
    assert next(watch).status == states.SERVICE_UNKNOWN
    for serving_now in (True, False, True):
        serving.do(lambda state=serving_now: serving.health.set("model", state))
        assert next(watch).status == (states.SERVING if serving_now else states.NOT_SERVING)
    watch.cancel()
    deadline = time.monotonic() + SECONDS
    while serving.do(lambda: len(serving.health._changes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not serving.do(lambda: len(serving.health._changes))


def test_reflection_describes_the_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    assert set(database.get_services()) >= {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
    assert pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Watch"].server_streaming


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_answers_what_is_not_there_with_an_error_and_goes_on(channel: grpc.Channel, version: str) -> None:
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    kind = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="grpc.health.v1.HealthCheckRequest", extension_number=9)
    questions = [
        kind(file_containing_symbol="no.such.Message"),
        kind(file_by_filename="no_such.proto"),
        kind(file_containing_extension=extension),
        kind(all_extension_numbers_of_type="no.such.Message"),
        kind(),
        kind(all_extension_numbers_of_type="grpc.health.v1.HealthCheckRequest"),
        kind(file_by_filename=health_pb2.DESCRIPTOR.name),
    ]
    answers = list(ask(iter(questions), timeout=SECONDS))
    assert [answer.error_response.error_code for answer in answers] == [5, 5, 5, 5, 3, 0, 0]
    assert [answer.original_request for answer in answers] == questions
    assert answers[6].file_descriptor_response.file_descriptor_proto == [health_pb2.DESCRIPTOR.serialized_pb]


# Connections and shutdown.


def test_calls_in_flight_are_answered_while_the_server_stops(serving: Serving, channel: grpc.Channel) -> None:
    calls = [unary(channel, "Wait").future(b"", timeout=SECONDS) for _ in range(5)]
    serving.methods.wait_for("Wait begun", 5)
    stopping = threading.Thread(target=serving.stop, args=(SECONDS,))
    stopping.start()
    time.sleep(0.1)
    serving.release()
    assert [call.result() for call in calls] == [b"waited"] * 5
    stopping.join(SECONDS)
    assert not stopping.is_alive()
    assert refused(unary(channel), b"", timeout=2).code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def test_grpcio_refuses_new_calls_when_it_leaves_and_closes_connections_once_the_others_are_answered() -> None:
    """What it has not begun when it stops would be cancelled, and no client repeats that."""
    with Serving("grpcio") as serving, grpc.insecure_channel(serving.target) as channel:
        waiting = channel.unary_unary("/test.Test/Wait").future(b"", timeout=SECONDS)
        serving.methods.wait_for("Wait begun")
        serving.do(lambda: serving._transport.leave(SECONDS, SECONDS))
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/test.Test/Echo")(b"data", timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        health = health_pb2_grpc.HealthStub(channel)
        health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        next(watching)
        stopping = asyncio.run_coroutine_threadsafe(serving._transport.stop(SECONDS), serving._loop)
        serving.release()
        assert waiting.result() == b"waited"
        with pytest.raises(grpc.RpcError) as ended:
            next(watching)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE  # as of a connection that is lost
        stopping.result(SECONDS)


def test_calls_that_outlast_the_stop_are_cancelled(serving: Serving, channel: grpc.Channel) -> None:
    call = unary(channel, "Wait").future(b"", timeout=SECONDS)
    answers = stream(channel, "Deaf")(iter([b"a"]), timeout=SECONDS)
    serving.methods.wait_for("Wait begun")
    serving.methods.wait_for("Deaf begun")
    began = time.monotonic()
    serving.stop(0.2)
    assert time.monotonic() - began < 15  # the calls would last for 20
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    for ended in (call.exception(timeout=SECONDS), caught.value):
        assert ended.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    serving.methods.wait_for("Wait cancelled")
    serving.methods.wait_for("Deaf cancelled")


def test_connection_is_replaced_at_its_age_and_no_call_fails(kind: str) -> None:
    with (
        Serving(kind, LIMITS._replace(connection_age=0.5)) as serving,
        grpc.insecure_channel(serving.target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        states: list[grpc.ChannelConnectivity] = []
        note = states.append
        channel.subscribe(note, try_to_connect=True)
        until = time.monotonic() + SECONDS
        while states.count(grpc.ChannelConnectivity.READY) < 2 and time.monotonic() < until:
            assert unary(channel)(b"a", timeout=SECONDS) == b"a"
        channel.unsubscribe(note)  # else its thread may meet the closed channel
        assert states.count(grpc.ChannelConnectivity.READY) >= 2


def test_call_that_outlasts_age_and_grace_of_its_connection_ends(kind: str) -> None:
    limits = LIMITS._replace(connection_age=0.2, connection_grace=0.2)
    with Serving(kind, limits) as serving, grpc.insecure_channel(serving.target) as channel:
        for _ in range(5):  # on a busy machine, a connection may be over before the call has arrived
            assert refused(unary(channel, "Wait"), b"").code() is grpc.StatusCode.UNAVAILABLE
            if serving.methods.counts["Wait begun"]:
                break
        serving.methods.wait_for("Wait cancelled")


def test_idle_connection_is_closed(kind: str) -> None:
    with Serving(kind, LIMITS._replace(connection_idle=0.5)) as serving:
        connected, idle = threading.Event(), threading.Event()

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                connected.set()
            elif state is grpc.ChannelConnectivity.IDLE and connected.is_set():
                idle.set()

        with grpc.insecure_channel(serving.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            channel.subscribe(changed)
            for _ in range(3):  # a client that looks late misses a short connection
                assert unary(channel)(b"a", timeout=SECONDS) == b"a"
                if idle.wait(SECONDS / 2):
                    break
            assert idle.is_set()
            assert unary(channel)(b"b", timeout=SECONDS) == b"b"
            channel.unsubscribe(changed)


def test_client_that_pings_too_often_is_sent_away(kind: str) -> None:
    pinging = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with (
        Serving(kind, LIMITS._replace(min_ping_seconds=60)) as serving,
        grpc.insecure_channel(serving.target, pinging) as channel,
    ):
        call = unary(channel, "Wait").future(b"", timeout=SECONDS)  # a client pings once a second at most
        assert call.exception(timeout=SECONDS).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("host", ["[::1]", "[::]", "localhost"])
def test_any_form_of_address_is_served(kind: str, host: str) -> None:
    with _reserved_port() as port, Serving(kind, address=f"{host}:{port}") as serving:
        with grpc.insecure_channel(serving.target.replace("[::]", "[::1]")) as channel:
            assert unary(channel)(b"a", timeout=SECONDS) == b"a"
        if host == "[::]":
            with grpc.insecure_channel(serving.target.replace("[::]", "127.0.0.1")) as channel:
                assert unary(channel)(b"a", timeout=SECONDS) == b"a"


def test_unix_socket_is_served_also_where_an_earlier_server_left_one(kind: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    for _ in range(2):
        with Serving(kind, address=address), grpc.insecure_channel(address) as channel:
            assert unary(channel)(b"a", timeout=SECONDS) == b"a"


def test_several_front_ends_share_a_port(kind: str) -> None:
    with Serving(kind) as one, Serving(kind, address=one.target) as other:
        for _ in range(200):
            with grpc.insecure_channel(one.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                assert unary(channel)(b"a", timeout=SECONDS) == b"a"
            if one.methods.counts["Echo begun"] and other.methods.counts["Echo begun"]:
                return
        raise AssertionError("all connections went to one of the two")


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port of all addresses that no other process gets meanwhile."""
    with socket.socket(socket.AF_INET6) as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        reserved.bind(("::", 0))
        yield int(reserved.getsockname()[1])


def test_path_that_is_not_text_ends_its_own_call_at_most(serving: Serving, channel: grpc.Channel) -> None:
    echo = channel.unary_unary("/test.Test/Echo")
    assert echo(b"before", timeout=SECONDS) == b"before"
    with Raw(serving.address) as raw:
        pairs = [(name, b"/test.Test/\xb0" if name == ":path" else value) for name, value in request()]
        raw.send(raw.headers(1, pairs) + frame(DATA, END_STREAM, 1, message(b"")))  # type: ignore[arg-type]
        while (found := raw.read()) is not None and found.kind not in (HEADERS, RST_STREAM):
            pass

    def is_answered() -> bool:
        try:
            return bool(echo(b"after", timeout=SECONDS, wait_for_ready=True) == b"after")
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                raise
            return False

    # gRPC's server ends at it, with what it has accepted; another takes its place.
    assert any(is_answered() for _ in range(100))
