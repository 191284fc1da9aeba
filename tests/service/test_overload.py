"""Deadlines, callers that go, and a full queue: what is refused never reaches the device, and nothing is lost."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import infer_request, method, reason, retry_delay, stream
from tests.service.running import Server
from tests.service.test_vision import encoded, grey

PATIENT = "server.heartbeat_seconds=0"  # of a server whose engine may stand still


@contextmanager
def standing(server: Server) -> Iterator[None]:
    """The engine of a PATIENT server stands still meanwhile: what was sent to it waits, however long a test takes to
    look at it."""
    engine = server.children()["engine"]
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGCONT)


@pytest.fixture(scope="module")
def busy(small_repository: Path, transport: str) -> Iterator[Server]:
    """A server whose queues are short: four images wait at most."""
    settings = ["batching.max_queue=4", "batching.max_batch_size=2", "server.lame_duck_seconds=0", PATIENT]
    with Server(small_repository, settings) as server:
        yield server


def request(seed: int) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="slow", images=[pb.Image(encoded=encoded(grey(seed)))])


def at_once(seed: int) -> pb.ClassifyRequest:
    """A request that no thread prepares: once it is in flight, it has been sent to the engine."""
    raw = pb.RawImage(pixels=grey(seed).tobytes(), height_px=8, width_px=8, channels=1)
    return pb.ClassifyRequest(model="slow", images=[pb.Image(raw=raw)])


def ran(server: Server, model: str = "slow") -> float:
    return server.total("convoy_batch_size_sum", model=model)


def missed(server: Server) -> float:
    """Callers whose time ran out. On a machine this busy, a caller may go well before our own timer runs out."""
    return server.total("convoy_deadline_misses_total") + server.total("convoy_cancelled_total")


def assert_all_slots_are_freed(server: Server) -> None:
    levels = ("convoy_slots", "convoy_slot_bytes", "convoy_requests_in_flight", "convoy_queue_depth")

    def used() -> dict[str, float]:
        samples = server.samples()
        totals = {name: sum(value for (found, _), value in samples.items() if found == name) for name in levels}
        return {name: total for name, total in totals.items() if total}

    # At one time: a request that its caller has cancelled may still be on its way, and take a slot for a moment.
    _wait_until(lambda: not used())


def test_a_request_that_would_be_late_is_refused_at_once_and_never_runs(small_repository: Path) -> None:
    settings = ["batching.max_batch_size=1", "server.lame_duck_seconds=0", PATIENT]
    answered: list[grpc.Future] = []
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        classify = method(channel, "Classify")
        # Half of the work before them, however fast the machine is. What has no deadline counts as due five runs after
        # its arrival: a shorter deadline would be served first.
        deadline = 2 * server.total("convoy_model_latency_objective_seconds", model="slow")
        with standing(server):  # until all are there, so that the engine reads the late ones behind all that work
            waiting = [classify.future(at_once(seed)) for seed in range(20)]
            _wait_until(lambda: server.total("convoy_requests_in_flight") == len(waiting))
            late = [classify.future(at_once(seed), timeout=deadline) for seed in range(20, 23)]
            for call in (*waiting, *late):
                call.add_done_callback(answered.append)
        for call in late:
            error = call.exception()
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "after the deadline" in error.details()
            assert reason(error) == "PREDICTED_LATE"
            assert 0.01 <= retry_delay(error) <= 10
        assert all(call.result().results[0].classification.labels for call in waiting)
        _wait_until(lambda: len(answered) == len(waiting) + len(late))
        assert set(late) < set(answered[: len(waiting) // 2])  # nobody waited to be refused
        assert_all_slots_are_freed(server)
        assert ran(server) == len(waiting)
        assert server.total("convoy_refusals_total", reason="PREDICTED_LATE") == 3


def test_what_is_of_low_priority_runs_behind_what_came_later(small_repository: Path) -> None:
    settings = ["batching.max_batch_size=1", "server.lame_duck_seconds=0", PATIENT]
    order: list[str] = []
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        classify = method(channel, "Classify")

        def ask(seed: int, priority: pb.Priority, name: str) -> grpc.Future:
            asked = at_once(seed)
            asked.priority = priority
            future = classify.future(asked)
            future.add_done_callback(lambda _: order.append(name))
            _wait_until(lambda: server.total("convoy_requests_in_flight") == seed)
            return future

        with standing(server):  # all are there before the first has run
            asked = [ask(1, pb.PRIORITY_NORMAL, "running"), ask(2, pb.PRIORITY_LOW, "low")]
            asked += [ask(seed, pb.PRIORITY_UNSPECIFIED, "normal") for seed in (3, 4)]
        for future in asked:
            assert future.result().results[0].classification.labels
        _wait_until(lambda: len(order) == 4)
        assert order == ["running", "normal", "normal", "low"]

        wrong = request(1)
        wrong.priority = 7  # type: ignore[assignment]
        error = classify.future(wrong).exception()
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "priority is 7" in error.details()


def test_an_objective_that_is_given_is_the_deadline_of_requests_without_one(small_repository: Path) -> None:
    settings = ["batching.latency_objective_ms=100", "server.lame_duck_seconds=0"]
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        error = method(channel, "Classify").future(request(1)).exception()
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PREDICTED_LATE")
        assert method(channel, "Classify")(request(1), timeout=30).results[0].classification.labels


@pytest.mark.both_transports
def test_a_request_whose_deadline_passes_in_the_queue_never_runs_and_is_counted(small_repository: Path) -> None:
    settings = ["batching.policy=eager", "batching.max_batch_size=2", "server.lame_duck_seconds=0", PATIENT]
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        classify = method(channel, "Classify")
        with standing(server):
            running = classify.future(at_once(1))
            # Sent by itself: none of the others can share its batch, or run before it.
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 1)
            late = [classify.future(request(seed), timeout=3) for seed in range(2, 5)]  # time enough to arrive
            for call in late:
                assert call.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
            # The server counts the time from the arrival: only now is it over there, too.
            _wait_until(lambda: missed(server) == 3)
        assert running.result().results[0].classification.labels
        assert_all_slots_are_freed(server)
        assert ran(server) == 1
        assert missed(server) == 3


@pytest.mark.both_transports
def test_a_deadline_that_has_passed_on_arrival_never_reaches_the_engine(busy: Server) -> None:
    before, misses = ran(busy), busy.total("convoy_deadline_misses_total")
    # gRPC rounds a caller's deadline up to milliseconds; this one counts microseconds from the arrival.
    late = infer_request("slow", grey(1)[None, :, :, None], "image", "UINT8")
    late.parameters["timeout"].int64_param = 1
    with grpc.insecure_channel(busy.grpc) as channel:
        for _ in range(5):
            with pytest.raises(grpc.RpcError, match="deadline passed before the image reached the queue") as caught:
                method(channel, "ModelInfer")(late)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_all_slots_are_freed(busy)
    assert ran(busy) == before
    assert busy.total("convoy_deadline_misses_total") - misses == 5


@pytest.mark.both_transports
def test_a_cancelled_caller_leaves_its_neighbours_alone_and_is_counted(busy: Server) -> None:
    before, cancelled = ran(busy), busy.total("convoy_cancelled_total")
    with grpc.insecure_channel(busy.grpc) as channel:
        classify = method(channel, "Classify")
        with standing(busy):
            first = classify.future(at_once(1))
            _wait_until(lambda: busy.total("convoy_requests_in_flight") == 1)
            gone, stays = classify.future(request(2)), classify.future(request(3))
            _wait_until(lambda: busy.total("convoy_requests_in_flight") == 3)
            gone.cancel()
            _wait_until(lambda: busy.total("convoy_cancelled_total") > cancelled)
        for call, seed in ((first, 1), (stays, 3)):
            labels = call.result().results[0].classification.labels
            assert [label.index for label in labels] == _best(seed)
    assert_all_slots_are_freed(busy)
    assert ran(busy) - before == 2
    assert busy.total("convoy_cancelled_total") - cancelled == 1


def test_a_cancelled_caller_that_waited_alone_is_no_longer_counted_as_waiting(busy: Server) -> None:
    with grpc.insecure_channel(busy.grpc) as channel:
        classify = method(channel, "Classify")

        def waited() -> bool:
            """Whether the one that is cancelled was seen to wait; the one that runs may end before that."""
            assert_all_slots_are_freed(busy)
            running = classify.future(request(1))
            if not _during(running, lambda: busy.total("convoy_requests_in_flight") == 1):
                return False
            gone = classify.future(request(2))
            seen = _during(running, lambda: busy.total("convoy_queue_depth", model="slow") == 1)
            gone.cancel()
            assert running.result().results[0].classification.labels
            return seen

        _wait_until(waited)
    assert_all_slots_are_freed(busy)


@pytest.mark.both_transports
def test_a_caller_that_goes_while_its_batch_runs_frees_its_slot(busy: Server) -> None:
    with grpc.insecure_channel(busy.grpc) as channel:
        before = busy.total("convoy_batches_total", model="slow")
        with standing(busy):
            call = method(channel, "Classify").future(at_once(1))
            _wait_until(lambda: busy.total("convoy_requests_in_flight") == 1)
            call.cancel()
            # The engine finds the request, runs it at once, and then finds that its caller has gone.
            _wait_until(lambda: busy.total("convoy_requests_in_flight") == 0)
        _wait_until(lambda: busy.total("convoy_batches_total", model="slow") == before + 1)
    assert_all_slots_are_freed(busy)


def test_a_full_queue_refuses_with_a_hint_and_the_others_are_answered(busy: Server) -> None:
    with grpc.insecure_channel(busy.grpc) as channel:
        with standing(busy):
            calls = [method(channel, "Classify").future(at_once(seed)) for seed in range(12)]
            _wait_until(lambda: busy.total("convoy_requests_in_flight") == 12)
        errors = [error for call in calls if (error := call.exception())]
        answered = [(seed, call) for seed, call in enumerate(calls) if call.exception() is None]
    assert errors
    for error in errors:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason(error) == "QUEUE_FULL"
        assert 0.01 <= retry_delay(error) <= 10
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 10
    assert len(answered) >= 4
    for seed, call in answered:
        labels = call.result().results[0].classification.labels
        assert [label.index for label in labels] == _best(seed)
    assert_all_slots_are_freed(busy)


def test_slot_memory_that_is_in_use_refuses_with_a_hint(quick_repository: Path) -> None:
    settings = ["limits.slot_bytes=1048576", "server.lame_duck_seconds=0"]
    image = np.zeros((400, 400, 3), np.uint8)  # 800 kB of input and outputs: one fits, two do not
    with Server(quick_repository, settings) as server, Client(server.grpc) as client:
        answers = client.segment_many([image] * 8, "colours")
        refused = [answer for answer in answers if isinstance(answer, ServerError)]
        assert 0 < len(refused) < 8
        assert {answer.code for answer in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert_all_slots_are_freed(server)
        with pytest.raises(ServerError, match="bytes of slot memory, want at most 1048576"):
            client.segment(np.zeros((1024, 1024, 3), np.uint8), "colours")


def test_large_images_ride_in_smaller_batches(quick_repository: Path) -> None:
    settings = ["batching.max_batch_pixels=3000", "server.lame_duck_seconds=0"]
    with Server(quick_repository, settings) as server, Client(server.grpc) as client:

        def largest(side: int) -> int:
            answers = client.segment_many([np.zeros((side, side, 3), np.uint8)] * 24, "colours")
            return max(answer.timings.batch_size for answer in answers if not isinstance(answer, ServerError))

        _wait_until(lambda: largest(8) > 2)  # unless the images come too slowly to meet
        assert largest(32) <= 2  # 1024 pixels each: two fit
        assert largest(64) == 1  # more than fits still runs, alone


def test_long_tensors_ride_in_smaller_batches(quick_repository: Path) -> None:
    settings = ["batching.max_batch_pixels=100", "server.lame_duck_seconds=0"]
    with Server(quick_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:

        def largest(length: int) -> int:
            one = infer_request("waves", np.zeros((1, 3, length), np.float32), "waveform")
            calls = [method(channel, "ModelInfer").future(one) for _ in range(24)]
            return max(call.result().parameters["convoy_batch_size"].int64_param for call in calls)

        _wait_until(lambda: largest(1) > 2)  # unless the calls come too slowly to meet
        assert largest(50) <= 2
        assert largest(101) == 1


def test_too_many_requests_at_once_are_refused_with_a_hint(small_repository: Path) -> None:
    settings = ["limits.max_requests=2", "server.lame_duck_seconds=0", PATIENT]
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        with standing(server):
            calls = [method(channel, "Classify").future(request(seed)) for seed in range(6)]
            _wait_until(lambda: sum(call.done() for call in calls) == 4)
        errors = [error for call in calls if (error := call.exception())]
        assert len(errors) == 4
        assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(retry_delay(error) > 0 for error in errors)


@pytest.fixture(scope="module")
def tight(small_repository: Path, transport: str) -> Iterator[Server]:
    """A server that takes 300 kB of requests at a time, and runs one image at a time."""
    limits = ["limits.inflight_bytes=300000", "limits.max_message_bytes=200000"]
    settings = [*limits, "batching.max_batch_size=1", "server.lame_duck_seconds=0", PATIENT]
    with Server(small_repository, settings) as server:
        yield server


def large(side: int = 300) -> pb.ClassifyRequest:
    """A request of a little more than 90 kB."""
    raw = pb.RawImage(pixels=bytes(side * side), height_px=side, width_px=side, channels=1)
    return pb.ClassifyRequest(model="slow", images=[pb.Image(raw=raw)])


def test_bytes_in_flight_never_exceed_their_bound_and_what_does_not_fit_is_refused_with_a_hint(tight: Server) -> None:
    size = large().ByteSize()
    refused = tight.total("convoy_refusals_total", reason="QUEUE_FULL")
    with grpc.insecure_channel(tight.grpc) as channel:
        classify = method(channel, "Classify")
        with standing(tight):
            held = [classify.future(large()) for _ in range(3)]
            _wait_until(lambda: tight.total("convoy_in_flight_bytes") == 3 * size)
            flood = [classify.future(large()) for _ in range(30)]
            errors = [call.exception() for call in flood]
            small = classify.future(request(1))  # a few bytes still fit
            _wait_until(lambda: tight.total("convoy_requests_in_flight") == 4)
            assert tight.total("convoy_in_flight_bytes") <= 300_000
        assert small.result().results
        assert all(call.result().results for call in held)
        assert classify(large()).results
    assert {(error.code(), reason(error)) for error in errors} == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")}
    assert all(retry_delay(error) > 0 for error in errors)
    assert (
        f"request has {size} bytes in addition to {3 * size} in flight, want at most 300000 in total"
        in errors[0].details()
    )
    assert tight.total("convoy_refusals_total", reason="QUEUE_FULL") - refused == len(errors)
    assert_all_slots_are_freed(tight)
    assert tight.wait_for_total("convoy_in_flight_bytes", 0) == 0


@pytest.mark.both_transports
def test_bytes_in_flight_fall_to_nothing_after_errors_and_cancels(tight: Server) -> None:
    broken = large()
    broken.images[0].raw.width_px += 1
    with grpc.insecure_channel(tight.grpc) as channel:
        classify = method(channel, "Classify")
        for bad in (broken, b"\xff" * 1000, pb.ClassifyRequest(model="made-up", images=large().images)):
            assert classify.future(bad).exception() is not None
        for call in [classify.future(large()) for _ in range(20)]:
            call.cancel()
        # Those that were on their way may still arrive, and are gone by the time that another one is answered.
        _wait_until(lambda: classify.future(large()).exception() is None)
        _wait_until(lambda: tight.total("convoy_requests_in_flight") == 0)
        with standing(tight):
            held = [classify.future(large()) for _ in range(3)]
            _wait_until(lambda: tight.total("convoy_requests_in_flight") == 3)
            for call in held:
                call.cancel()
        _wait_until(lambda: tight.total("convoy_requests_in_flight") == 0)
        requests = [pb.ClassifyStreamRequest(id=number, request=large()) for number in range(9)]
        with standing(tight):  # three fit
            line = stream(channel, "ClassifyStream")(iter(requests))
            assert [next(line).WhichOneof("outcome") for _ in range(6)] == ["error"] * 6
        next(line)
        line.cancel()
    assert_all_slots_are_freed(tight)
    assert tight.wait_for_total("convoy_in_flight_bytes", 0) == 0


def _best(seed: int) -> list[int]:
    logits = grey(seed).reshape(-1).astype(np.float32) @ networks.classifier_weights()
    return [int(index) for index in np.argsort(-logits, kind="stable")[:5]]


def _wait_until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    turn, end = threading.Event(), time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        turn.wait(0.01)


def _during(call: grpc.Future, holds: Callable[[], object]) -> bool:
    """Whether something came about before a call ended."""
    turn = threading.Event()
    while not call.done():
        if holds():
            return True
        turn.wait(0.01)
    return False
