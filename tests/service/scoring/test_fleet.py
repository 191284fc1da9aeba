"""Scoring by a server: what a broken stream leaves is sent again, refusals are waited for, one version answers all."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass

from convoy.service.client.results import ServerError
from convoy.service.errors import BadConfig, ModelUnavailable, UnknownModel
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.scoring import fleet
from convoy.service.scoring.score import Score
from tests.service.scoring.conftest import png

LABELS = [str(number) for number in range(256)]
RESOURCE_EXHAUSTED, UNAVAILABLE, INVALID_ARGUMENT, NOT_FOUND = 8, 14, 3, 5


def numbered(number: int) -> bytes:
    """A picture that `Streams` knows by its size in bytes."""
    return png(np.full((1, number + 1, 3), 9, np.uint8))


class Streams:
    """A server whose streams answer as `answer` says: for the number of an image and how often it has come, None or an
    error for it; or it ends the stream."""

    def __init__(self) -> None:
        self.answer: Callable[[int, int], pb.RequestError | grpc.StatusCode | None] = lambda number, times: None
        self.came: Counter[int] = Counter()
        self.at: list[tuple[int, float]] = []
        self.requests: list[pb.ClassifyRequest] = []
        self.versions = [3]
        self.state = pb.MODEL_STATE_READY
        self.task = pb.TASK_CLASSIFICATION

    def ClassifyStream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for message in requests:
            (image,) = message.request.images
            number = int.from_bytes(image.encoded[16:20], "big") - 1  # the width in the header of a PNG file
            self.came[number] += 1
            self.at.append((number, time.monotonic()))
            self.requests.append(message.request)
            response = pb.ClassifyStreamResponse(id=message.id)
            match self.answer(number, self.came[number]):
                case grpc.StatusCode() as code:
                    context.abort(code, "the stream ends")
                case pb.RequestError() as error:
                    response.error.CopyFrom(error)
                case None:
                    response.response.model, response.response.version = "digits", message.request.version
                    result = response.response.results.add()
                    result.classification.labels.add(index=number, name=LABELS[number], probability=0.5)
            yield response

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        models = [
            pb.ModelInfo(
                model="digits",
                version=version,
                state=self.state,
                task=self.task,
                labels=LABELS,
                input=pb.InputSize(height_px=8, width_px=8, colour="RGB", fit="stretch"),
            )
            for version in self.versions
        ]
        return pb.ListModelsResponse(models=models)


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def target(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(fleet, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(fleet, "_LONGEST_WAIT", 0.05)
    vision = pb.DESCRIPTOR.services_by_name["Vision"]
    handlers = {}
    for name, kind in (
        ("ClassifyStream", grpc.stream_stream_rpc_method_handler),
        ("ListModels", grpc.unary_unary_rpc_method_handler),
    ):
        method = vision.methods_by_name[name]
        handlers[name] = kind(
            getattr(streams, name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(vision.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def scored(target: str, numbers: Sequence[int], **options: Any) -> dict[str, list[Any]]:
    return Score(f"digits@{target}", **options)(
        {"id": [str(number) for number in numbers], "bytes": [numbered(number) for number in numbers]}
    )


def refusal(code: int, reason: str, retry_after: float = 0.0) -> pb.RequestError:
    return pb.RequestError(code=code, reason=reason, message=reason.lower(), retry_after_seconds=retry_after)


def test_each_image_has_its_answer_at_low_priority_by_one_version(streams: Streams, target: str) -> None:
    streams.versions = [2, 7]
    result = scored(target, range(50), top_k=3)
    assert result["indices"] == [[number] for number in range(50)]
    assert result["labels"] == [[str(number)] for number in range(50)]
    assert set(result["version"]) == {7}
    assert {(each.model, each.version, each.priority, each.top_k) for each in streams.requests} == {
        ("digits", 7, pb.PRIORITY_LOW, 3)
    }


def test_a_newer_version_does_not_change_a_run(streams: Streams, target: str) -> None:
    scorer = Score(f"digits@{target}").settled()
    streams.versions = [3, 4]
    assert set(scorer({"id": ["a"], "bytes": [numbered(1)]})["version"]) == {3}
    # Nor one that another process goes on with.
    assert fleet.Fleet("digits", target, scorer.options).version == 3


def test_of_a_broken_stream_only_the_unanswered_are_sent_again(streams: Streams, target: str) -> None:
    streams.answer = lambda number, times: grpc.StatusCode.UNAVAILABLE if number in (10, 30) and times == 1 else None
    result = scored(target, range(40))
    assert result["indices"] == [[number] for number in range(40)]
    assert result["error"] == [None] * 40
    assert set(streams.came.values()) == {1, 2}
    assert {number for number, times in streams.came.items() if times == 2} == {10, 30}


@pytest.mark.parametrize("refused", [5, 19], ids=["in the middle", "the last of its stream"])
def test_refused_images_come_again_when_the_server_says(streams: Streams, target: str, refused: int) -> None:
    full = refusal(RESOURCE_EXHAUSTED, "QUEUE_FULL", 0.2)
    streams.answer = lambda number, times: full if number == refused and times == 1 else None
    result = scored(target, range(20))
    assert result["indices"] == [[number] for number in range(20)]
    assert streams.came[refused] == 2
    assert sum(streams.came.values()) == 21
    first, again = (at for number, at in streams.at if number == refused)
    assert again - first >= 0.2


def test_after_a_refusal_the_rest_waits_too(streams: Streams, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paused, pause = threading.Event(), fleet._Sending.pause
    refused, quiet = 0, False

    def noted(sending: fleet._Sending, error: ServerError) -> None:
        pause(sending, error)
        paused.set()

    def answer(number: int, times: int) -> pb.RequestError | None:
        """Refuses all until none has come for a while."""
        nonlocal refused, quiet
        quiet = quiet or (refused > 0 and streams.at[-1][1] - streams.at[-2][1] >= 0.2)
        if quiet:
            return None
        if refused:
            assert paused.wait(20)  # until then no more is read, and so much does not fit on its way
        refused += 1
        return refusal(RESOURCE_EXHAUSTED, "QUEUE_FULL", 0.4)

    monkeypatch.setattr(fleet._Sending, "pause", noted)
    streams.answer = answer
    images = [numbered(number) + bytes(20_000) for number in range(200)]
    result = Score(f"digits@{target}")({"id": [str(number) for number in range(200)], "bytes": images})
    assert result["error"] == [None] * 200
    # Images that were on their way are refused, but those after them are not sent to be refused.
    assert 0 < refused < 200


def test_errors_of_an_image_are_its_row(streams: Streams, target: str) -> None:
    streams.answer = lambda number, times: refusal(INVALID_ARGUMENT, "BAD_IMAGE") if number == 2 else None
    result = scored(target, range(4))
    assert result["error"] == [None, None, "bad_image", None]
    assert streams.came[2] == 1


def test_images_that_cannot_be_read_are_rows_and_are_not_sent(streams: Streams, target: str) -> None:
    def absent() -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    ended: list[bool] = []
    reads = [absent, lambda: numbered(1), absent, absent]
    result = Score(f"digits@{target}").rows(list("abcd"), reads, ended.append)
    assert result["error"] == ["No such file or directory", None, *["No such file or directory"] * 2]
    assert sorted(ended) == [False, True, True, True]
    assert sum(streams.came.values()) == 1


def test_an_image_that_ends_every_stream_is_an_error_and_the_others_are_answered(streams: Streams, target: str) -> None:
    too_large = grpc.StatusCode.RESOURCE_EXHAUSTED
    streams.answer = lambda number, times: too_large if number == 3 else None
    result = scored(target, range(8))
    assert [number for number, error in enumerate(result["error"]) if error is not None] == [3]
    assert result["indices"][4:] == [[4], [5], [6], [7]]


@pytest.mark.parametrize("way", ["stream", "image"])
def test_what_no_wait_will_change_ends_the_run(streams: Streams, target: str, way: str) -> None:
    gone = grpc.StatusCode.NOT_FOUND if way == "stream" else refusal(NOT_FOUND, "UNKNOWN_MODEL")
    streams.answer = lambda number, times: gone
    with pytest.raises(ServerError) as raised:
        scored(target, range(4))
    assert raised.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("way", ["stream", "image"])
def test_a_server_that_answers_nothing_is_given_up(
    streams: Streams, target: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "PATIENCE", 0.3)
    ends = grpc.StatusCode.UNAVAILABLE if way == "stream" else refusal(UNAVAILABLE, "MODEL_UNAVAILABLE")
    streams.answer = lambda number, times: ends
    with pytest.raises(ServerError) as raised:
        scored(target, range(4))
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE


def test_versions_and_models_that_do_not_serve_are_refused(streams: Streams, target: str) -> None:
    with pytest.raises(UnknownModel, match="has no version 9 of model 'digits' any more"):
        Score(f"digits@{target}", version=9).open()
    with pytest.raises(UnknownModel, match="has no model 'digit'; did you mean 'digits'"):
        Score(f"digit@{target}").open()
    streams.state = pb.MODEL_STATE_LOADING
    with pytest.raises(ModelUnavailable, match="model 'digits' is loading"):
        Score(f"digits@{target}", top_k=1).open()
    streams.state, streams.task = pb.MODEL_STATE_READY, pb.TASK_MATCHING
    with pytest.raises(BadConfig, match="is not for classification or segmentation of images"):
        Score(f"digits@{target}", top_k=2).open()


def test_reading_stays_close_to_what_the_server_accepts(streams: Streams, target: str) -> None:
    """An endless list of large images must not fill the memory."""
    blocked, most = threading.Event(), 0

    def answer(number: int, times: int) -> None:
        nonlocal most
        if number == 3 and not blocked.is_set():
            blocked.wait(0.5)
            most = len(read)
            blocked.set()

    streams.answer = answer
    read: list[int] = []
    picture = png(np.random.default_rng(1).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    first = [numbered(number) for number in range(8)]

    def reader(number: int) -> Callable[[], bytes]:
        def one() -> bytes:
            read.append(number)
            return first[number] if number < 8 else picture

        return one

    result = Score(f"digits@{target}").rows([str(n) for n in range(400)], map(reader, range(400)), lambda failed: None)
    assert result["error"] == [None] * 400
    assert 0 < most < 200
