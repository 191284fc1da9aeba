"""Many requests over one stream: each has its own answer, and none holds up or brings down the others."""

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import Classification, Segmentation, ServerError
from convoy.service.errors import BadImage, BadRequest
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service.calls import infer_request, outputs, stream
from tests.service.running import Server
from tests.service.test_overload import PATIENT, _best, _wait_until, assert_all_slots_are_freed, standing
from tests.service.test_vision import colourful, encoded, grey


class Line:
    """A stream that is spoken by hand: `say` sends, `hear` waits for the next response."""

    def __init__(self, channel: grpc.Channel, name: str = "ClassifyStream", timeout: float = 120) -> None:
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = stream(channel, name)(iter(self._out.get, None), timeout=timeout)

    def say(self, message: Any) -> None:
        self._out.put(message)

    def hang_up(self) -> None:
        self._out.put(None)

    def hear(self) -> Any:
        return next(self.call)


def ask(number: int, model: str = "letters", **more: Any) -> pb.ClassifyStreamRequest:
    image = pb.Image(raw=pb.RawImage(pixels=grey(number).tobytes(), height_px=8, width_px=8, channels=1))
    return pb.ClassifyStreamRequest(id=number, request=pb.ClassifyRequest(model=model, images=[image]), **more)


def best(response: pb.ClassifyStreamResponse) -> list[int]:
    return [label.index for label in response.response.results[0].classification.labels]


@pytest.fixture
def lonely(small_repository: Path) -> Iterator[Server]:
    """A server of one front end that reads at most four requests of a stream, and runs one image at a time."""
    settings = ["limits.max_stream_requests=4", "batching.max_batch_size=1", "server.lame_duck_seconds=0", PATIENT]
    with Server(small_repository, settings) as server:
        yield server


@pytest.mark.both_transports
def test_every_request_of_a_stream_gets_its_own_answer_with_its_own_id(quick_repository: Path) -> None:
    settings = ["server.frontends=2", "server.lame_duck_seconds=0", PATIENT]
    with Server(quick_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        with standing(server):  # what the stream brings waits, however slow its caller is
            call = stream(channel, "ClassifyStream")(ask(number) for number in range(300))
            _wait_until(lambda: server.total("convoy_requests_in_flight") >= 100)
        responses = list(call)
    assert sorted(response.id for response in responses) == list(range(300))
    assert all(best(response)[0] == _best(response.id)[0] for response in responses)
    # What comes together rides together.
    assert max(response.response.results[0].timings.batch_size for response in responses) > 4


def test_ids_are_the_callers_business(channel: grpc.Channel) -> None:
    odd = [ask(3), ask(3), ask(4)]
    odd[0].id = odd[1].id = 2**64 - 1
    responses = list(stream(channel, "ClassifyStream")(iter(odd)))
    assert sorted(response.id for response in responses) == [4, 2**64 - 1, 2**64 - 1]


@pytest.mark.both_transports
def test_bad_request_fails_alone_with_what_a_calls_status_would_say(channel: grpc.Channel) -> None:
    late = ask(7, "slow", deadline_seconds=1e-6)
    bad = [
        ask(0),
        ask(1, "made-up"),
        b"\xff\xff\xff",
        ask(3, deadline_seconds=-1),
        ask(4),
        pb.ClassifyStreamRequest(id=5),
    ]
    bad[4].request.images[0].raw.channels = 2
    responses = list(stream(channel, "ClassifyStream")(iter([*bad, late, ask(9)])))
    good = sorted(response.id for response in responses if response.HasField("response"))
    assert good == [0, 9]
    errors = sorted((r.id, r.error.reason, r.error.code, r.error.message) for r in responses if r.HasField("error"))
    assert [error[:3] for error in errors] == [
        (0, "BAD_REQUEST", 3),
        (1, "UNKNOWN_MODEL", 5),
        (3, "BAD_REQUEST", 3),
        (4, "BAD_IMAGE", 3),
        (5, "UNKNOWN_MODEL", 5),
        (7, "DEADLINE_PASSED", 4),
    ]
    assert errors[0][3] == "request is not a convoy.v1.ClassifyStreamRequest message"
    assert errors[2][3] == "deadline_seconds is -1, want 0 to 1000000000"


def test_request_that_is_done_first_is_answered_first(lonely: Server) -> None:
    with grpc.insecure_channel(lonely.grpc) as channel:
        line = Line(channel)
        with standing(lonely):
            line.say(ask(1, "slow"))
            line.say(ask(2, "made-up"))
            assert line.hear().id == 2
        assert line.hear().id == 1
        line.hang_up()
        assert list(line.call) == []
        assert line.call.code() == grpc.StatusCode.OK


def test_server_reads_no_further_than_it_may_and_goes_on_when_it_has_answered(lonely: Server) -> None:
    with grpc.insecure_channel(lonely.grpc) as channel:
        line = Line(channel)
        with standing(lonely):
            for number in range(12):
                line.say(ask(number, "slow"))
            line.hang_up()
            _wait_until(lambda: lonely.total("convoy_requests_in_flight") == 4)
        most, responses = 0.0, []
        while len(responses) < 12:
            most = max(most, lonely.total("convoy_requests_in_flight"))
            responses.append(line.hear())
        assert most <= 4
    assert sorted(response.id for response in responses) == list(range(12))
    assert all(best(response) == _best(response.id) for response in responses)
    assert_all_slots_are_freed(lonely)


def test_flow_control_holds_a_caller_back_that_sends_too_much(lonely: Server) -> None:
    taken = itertools.count()
    image = np.zeros((700, 700), np.uint8)  # half a megabyte: what the connection itself buffers is soon full
    raw = pb.RawImage(pixels=image.tobytes(), height_px=700, width_px=700, channels=1)
    last = 0

    def requests() -> Iterator[pb.ClassifyStreamRequest]:
        nonlocal last
        for _ in range(60):
            last = next(taken)
            yield pb.ClassifyStreamRequest(
                id=last, request=pb.ClassifyRequest(model="slow", images=[pb.Image(raw=raw)])
            )

    with grpc.insecure_channel(lonely.grpc) as channel:
        call = stream(channel, "ClassifyStream")(requests())
        next(call)
        _wait_until(lambda: lonely.total("convoy_requests_in_flight") == 4)
        assert last < 50
        call.cancel()
    assert_all_slots_are_freed(lonely)


@pytest.mark.both_transports
def test_each_requests_deadline_is_its_own(lonely: Server) -> None:
    with grpc.insecure_channel(lonely.grpc) as channel:
        line = Line(channel)
        with standing(lonely):
            line.say(ask(1, "slow"))
            _wait_until(lambda: lonely.total("convoy_requests_in_flight") == 1)
            line.say(ask(2, "slow", deadline_seconds=0.05))
            line.say(ask(3, "slow", deadline_seconds=60))
            first = line.hear()
        assert (first.id, first.error.code) in ((2, 4), (2, 8))  # passed, or foreseen
        assert first.error.reason in ("DEADLINE_PASSED", "PREDICTED_LATE")
        if first.error.reason == "PREDICTED_LATE":
            assert first.error.retry_after_seconds > 0
        assert [line.hear().id, line.hear().id] == [1, 3]
    assert_all_slots_are_freed(lonely)
    assert lonely.total("convoy_batch_size_sum", model="slow") == 2


@pytest.mark.both_transports
def test_the_streams_deadline_is_that_of_all_its_requests(lonely: Server) -> None:
    with grpc.insecure_channel(lonely.grpc) as channel:
        line = Line(channel, timeout=0.3)
        for number in range(4):
            line.say(ask(number, "slow"))
        with pytest.raises(grpc.RpcError) as caught:
            list(line.call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_all_slots_are_freed(lonely)


@pytest.mark.both_transports
def test_cancelled_stream_cancels_what_is_queued(small_repository: Path) -> None:
    settings = ["batching.max_batch_size=1", "server.lame_duck_seconds=0", PATIENT]
    with Server(small_repository, settings) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            line = Line(channel)
            with standing(server):
                for number in range(20):
                    line.say(ask(number, "slow"))
                _wait_until(lambda: server.total("convoy_requests_in_flight") == 20)
                line.call.cancel()
                _wait_until(lambda: server.total("convoy_cancelled_total", model="slow") == 20)
        assert_all_slots_are_freed(server)
        # The engine runs what it finds first, and more if it is slow to find that nobody awaits it.
        assert server.total("convoy_batch_size_sum", model="slow") < 10


@pytest.mark.both_transports
def test_storm_of_streams_that_break_off_leaves_nothing_behind(small: Server) -> None:
    log = len(small.log)
    random = np.random.default_rng(3)

    async def one(client: AsyncClient, reads: int) -> None:
        answers = client.classify_stream((grey(number) for number in range(60)), "letters")
        async for number, answer in answers:
            assert isinstance(answer, Classification)
            assert answer.labels[0].index == _best(number)[0]
            reads -= 1
            if reads <= 0:
                break
        await answers.aclose()  # type: ignore[attr-defined]

    async def run() -> None:
        async with AsyncClient(small.grpc) as client:
            for _ in range(10):
                await asyncio.gather(*(one(client, int(random.integers(1, 60))) for _ in range(8)))

    asyncio.run(run())
    assert_all_slots_are_freed(small)
    assert [record for record in small.log[log:] if record.get("level") in ("error", "raw")] == []


@pytest.mark.both_transports
def test_stream_ends_in_order_when_the_server_drains(small_repository: Path) -> None:
    settings = ["server.lame_duck_seconds=0.2", "server.grace_seconds=100", "batching.max_batch_size=1", PATIENT]
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        line, idle = Line(channel), Line(channel)
        idle.say(ask(1))
        assert idle.hear().id == 1
        with standing(server):
            for number in range(6):
                line.say(ask(number, "slow"))
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 6)
            ended: list[int] = []
            stopping = threading.Thread(target=lambda: ended.append(server.stop(seconds=120)))
            stopping.start()
            assert list(idle.call) == []
            assert idle.call.code() == grpc.StatusCode.OK
            line.say(ask(77))  # the idle stream has ended: from here on nothing more is accepted
            refused = line.hear()
        responses = list(line.call)
        stopping.join()
    assert {response.id for response in responses if response.HasField("response")} == set(range(6))
    assert len(responses) == 6
    assert (refused.id, refused.error.code, refused.error.reason) == (77, 14, "MODEL_UNAVAILABLE")
    assert line.call.code() == grpc.StatusCode.OK
    assert ended == [0]


def test_requests_of_a_stream_are_counted_and_timed_as_calls_are(quick_repository: Path) -> None:
    with Server(quick_repository, ["server.lame_duck_seconds=0"]) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            requests = [*(ask(number) for number in range(5)), ask(9, "made-up"), ask(8)]
            requests[-1].request.images[0].raw.channels = 2
            responses = list(stream(channel, "ClassifyStream")(iter(requests)))
        count = "convoy_request_duration_seconds_count"
        assert server.wait_for_total(count, 5, model="letters", method="ClassifyStream", code="OK") == 5
        assert server.wait_for_total(count, 1, model="letters", method="ClassifyStream", code="INVALID_ARGUMENT") == 1
        assert server.wait_for_total(count, 1, model="", method="ClassifyStream", code="NOT_FOUND") == 1
        assert server.total("convoy_refusals_total", model="letters", reason="BAD_IMAGE") == 1
        assert server.total("convoy_images_total", model="letters") == 5
        assert server.total("nv_inference_request_success", model="letters") == 5
    for response in responses:
        if response.HasField("response"):
            timings = response.response.results[0].timings
            stages = [
                value for field, value in timings.ListFields() if field.name not in ("total_seconds", "batch_size")
            ]
            assert sum(stages) == pytest.approx(timings.total_seconds)


# Tensors.


def tensors(value: float, model: str = "doubler", rows: int = 1) -> inference_pb2.ModelInferRequest:
    request = infer_request(model, np.full((rows, 4), value, np.float32))
    request.id = f"{value:g}"
    return request


@pytest.mark.both_transports
def test_tensors_of_a_stream_are_answered_in_the_order_of_their_requests(channel: grpc.Channel) -> None:
    image = infer_request("slow", np.zeros((1, 8, 8, 1), np.uint8), "image", "UINT8")
    image.id = "slow"
    responses = list(stream(channel, "ModelStreamInfer")(iter([image, *(tensors(number) for number in range(200))])))
    assert [response.infer_response.id for response in responses] == ["slow", *map(str, range(200))]
    assert {response.error_message for response in responses} == {""}
    for number, response in enumerate(responses[1:]):
        np.testing.assert_array_equal(outputs(response.infer_response)["y"], np.full((1, 4), 2 * number))


def test_bad_tensors_fail_alone_in_words_and_the_stream_goes_on(channel: grpc.Channel) -> None:
    wrong = tensors(3)
    wrong.inputs[0].datatype = "FP64"
    late = tensors(5)
    late.parameters["timeout"].int64_param = 1
    line = Line(channel, "ModelStreamInfer")
    found = []
    for request in (tensors(1), tensors(2, "made-up"), wrong, b"\xff\xff", late, tensors(6, rows=99), tensors(7)):
        line.say(request)
        response = line.hear()
        parameters = response.infer_response.parameters
        assert parameters["triton_final_response"].bool_param
        assert bool(response.error_message) == (parameters["convoy_status"].string_param != "")
        found.append((response.infer_response.id, parameters["convoy_status"].string_param, response.error_message))
    line.hang_up()
    assert list(line.call) == []
    assert line.call.code() is grpc.StatusCode.OK
    assert [one[:2] for one in found] == [
        ("1", ""),
        ("2", "NOT_FOUND"),
        ("3", "INVALID_ARGUMENT"),
        ("", "INVALID_ARGUMENT"),
        ("5", "DEADLINE_EXCEEDED"),
        ("6", "INVALID_ARGUMENT"),
        ("7", ""),
    ]
    assert found[2][2] == "input 'x' has datatype 'FP64', want 'FP32'"
    assert found[3][2] == "request is not a inference.ModelInferRequest message"


@pytest.mark.both_transports
def test_large_tensors_of_a_stream_come_whole(channel: grpc.Channel) -> None:
    lengths = (200_000, 3, 100_000)
    requests = [infer_request("compressor", np.arange(1, length, dtype=np.float32)) for length in lengths]
    responses = stream(channel, "ModelStreamInfer")(iter(requests))
    for length, response in zip(lengths, responses, strict=True):
        assert outputs(response.infer_response)["positive"].tolist() == list(range(1, length))


def test_request_for_an_empty_final_response_is_answered_once_and_finally(channel: grpc.Channel) -> None:
    request = tensors(1)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    (response,) = stream(channel, "ModelStreamInfer")(iter([request]))
    assert response.infer_response.parameters["triton_final_response"].bool_param
    assert outputs(response.infer_response)["y"].shape == (1, 4)


def test_no_more_tensors_are_read_than_may_be_under_way(lonely: Server) -> None:
    image = infer_request("slow", np.zeros((1, 8, 8, 1), np.uint8), "image", "UINT8")
    with grpc.insecure_channel(lonely.grpc) as channel:
        line = Line(channel, "ModelStreamInfer")
        with standing(lonely):
            for _ in range(10):
                line.say(image)
            line.hang_up()
            _wait_until(lambda: lonely.total("convoy_requests_in_flight") == 4)
        most, count = 0.0, 0
        while count < 10:
            most = max(most, lonely.total("convoy_requests_in_flight"))
            assert not line.hear().error_message
            count += 1
        assert most <= 4
    assert_all_slots_are_freed(lonely)


def test_cancelled_stream_of_tensors_leaves_nothing_behind(lonely: Server) -> None:
    image = infer_request("slow", np.zeros((1, 8, 8, 1), np.uint8), "image", "UINT8")
    with grpc.insecure_channel(lonely.grpc) as channel:
        line = Line(channel, "ModelStreamInfer")
        with standing(lonely):
            for _ in range(4):
                line.say(image)
            _wait_until(lambda: lonely.total("convoy_requests_in_flight") == 4)
            line.call.cancel()
    assert_all_slots_are_freed(lonely)


# The client.


def test_client_gives_each_image_its_place_and_result(client: Client) -> None:
    images = [grey(1), encoded(grey(2)), b"no image", grey(3)]
    answers = dict(client.classify_stream(images, "letters", top_k=2))
    assert sorted(answers) == [0, 1, 2, 3]
    refused = answers.pop(2)
    assert isinstance(refused, ServerError)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_IMAGE")
    for number, answer in answers.items():
        assert isinstance(answer, Classification)
        assert [label.index for label in answer.labels] == _best([1, 2, 0, 3][number])[:2]


@pytest.mark.parametrize("form", ["raw", "png", "rle"])
def test_client_streams_class_maps(client: Client, form: Any) -> None:
    images = [colourful(seed, 5 + seed, 20 - seed) for seed in range(6)]
    for number, answer in client.segment_stream(images, "colours", format=form, with_confidence=True):
        assert isinstance(answer, Segmentation)
        np.testing.assert_array_equal(answer.mask, images[number].argmax(2))


def test_asyncio_client_streams_what_comes_little_by_little(small: Server) -> None:
    async def images() -> AsyncIterator[np.ndarray]:
        for number in range(20):
            await asyncio.sleep(0)
            yield grey(number)

    async def run() -> dict[int, Any]:
        async with AsyncClient(small.grpc) as client:
            found = {number: answer async for number, answer in client.classify_stream(images(), "letters")}
            maps = [place async for place, _ in client.segment_stream([colourful(1, 4, 4)], "colours")]
        assert maps == [0]
        return found

    found = asyncio.run(run())
    assert {number: answer.labels[0].index for number, answer in found.items()} == {
        number: _best(number)[0] for number in range(20)
    }


def test_images_are_taken_as_answers_come_without_end(client: Client) -> None:
    endless = (grey(number % 7) for number in itertools.count())
    some = list(itertools.islice(client.classify_stream(endless, "letters"), 500))
    assert len({number for number, _ in some}) == 500


def test_file_that_cannot_be_read_is_told_after_the_answers(client: Client, tmp_path: Path) -> None:
    answers = client.classify_stream([grey(1), tmp_path / "none.png", grey(2)], "letters")
    assert next(answers)[0] == 0
    with pytest.raises(BadImage, match=r"none\.png"):
        next(answers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"deadline": 0}, "deadline is 0"), ({"version": -1}, "version is -1"), ({"top_k": -1}, "top_k")],
)
def test_client_refuses_what_no_server_takes_before_it_sends(client: Client, wrong: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        list(client.classify_stream([grey(1)], "letters", **wrong))


def test_client_tells_that_the_server_ended_the_stream_or_is_not_there(quick_repository: Path) -> None:
    with Server(quick_repository, ["server.lame_duck_seconds=0"]) as server, Client(server.grpc) as client:
        never_enough = threading.Event()

        def images() -> Iterator[np.ndarray]:
            yield grey(1)
            never_enough.wait(30)

        answers = client.classify_stream(images(), "letters")
        assert next(answers)[0] == 0
        assert server.stop() == 0
        with pytest.raises(ServerError, match="ended the stream, 0 requests had no answer") as caught:
            next(answers)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        never_enough.set()
        with pytest.raises(ServerError) as caught:
            list(client.classify_stream([grey(1)], "letters"))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
