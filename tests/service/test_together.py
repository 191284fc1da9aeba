"""A real server lets small requests travel together, and no caller can tell, whatever the others do."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import infer_request, method, stream
from tests.service.running import Server
from tests.service.test_overload import assert_all_slots_are_freed
from tests.service.test_vision import grey

CLASSIFY = "/convoy.v1.Vision/Classify"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A batch takes 5 ms, whatever its size: requests meet, and rows cost little."""
    root: Path = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.classifier(), root, "others")
    with Server(root, ["engine.sleep_ms=[5, 0]", "server.lame_duck_seconds=0"]) as running:
        yield running


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same networks, run."""
    root: Path = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.classifier(), root, "others")
    with Server(root, ["server.lame_duck_seconds=0"]) as running:
        yield running


def classify_request(seed: int, model: str = "letters", top_k: int = 10) -> pb.ClassifyRequest:
    raw = pb.RawImage(pixels=grey(seed).tobytes(), height_px=8, width_px=8, channels=1)
    return pb.ClassifyRequest(model=model, images=[pb.Image(raw=raw)], top_k=top_k)


def probabilities(seed: int) -> list[float]:
    """Of the classes of an image, by numpy."""
    logits = grey(seed).reshape(-1).astype(np.float32) @ networks.classifier_weights()
    exponentials = np.exp(logits - logits.max())
    return [float(value) for value in exponentials / exponentials.sum()]


def check(response: pb.ClassifyResponse, seed: int, model: str, top_k: int) -> None:
    assert (response.model, response.version) == (model, 1)
    (result,) = response.results
    labels = result.classification.labels
    expected = probabilities(seed)
    assert len({label.index for label in labels}) == top_k
    assert labels[0].probability == pytest.approx(max(expected), abs=1e-5)
    for label in labels:
        assert label.name == "abcdefghij"[label.index]
        assert label.probability == pytest.approx(expected[label.index], abs=1e-5)
    timings = result.timings
    parts = [getattr(timings, field.name) for field in timings.DESCRIPTOR.fields if field.name.endswith("_seconds")]
    assert timings.total_seconds == max(parts) > 0
    assert sum(parts) - timings.total_seconds == pytest.approx(timings.total_seconds, rel=0.01)


def test_each_caller_gets_its_own_answer_whoever_travels_along(real: Server) -> None:
    sizes: Counter[int] = Counter()

    async def caller(channel: grpc.aio.Channel, number: int) -> None:
        ask = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        chance = random.Random(number)
        for turn in range(30):
            seed, model, top_k = 1000 * number + turn, chance.choice(["letters", "others"]), chance.choice([1, 3, 10])
            response = await ask(classify_request(seed, model, top_k).SerializeToString())
            check(response, seed, model, top_k)
            sizes[response.results[0].timings.batch_size] += 1

    async def play() -> None:
        async with grpc.aio.insecure_channel(real.grpc) as channel:
            await asyncio.gather(*(caller(channel, number) for number in range(24)))

    asyncio.run(play())
    assert max(sizes) > 1  # the control: they did travel together
    assert_all_slots_are_freed(real)


def test_tensors_of_many_callers_come_back_each_with_its_own_id(real: Server) -> None:
    async def caller(channel: grpc.aio.Channel, number: int) -> None:
        ask = channel.unary_unary(INFER, response_deserializer=inference_pb2.ModelInferResponse.FromString)
        for turn in range(20):
            seed = 1000 * number + turn
            request = infer_request("letters", grey(seed)[None, :, :, None], "image", "UINT8")
            request.id = f"caller {number}, turn {turn}"
            response = await ask(request.SerializeToString())
            assert (response.model_name, response.model_version, response.id) == ("letters", "1", request.id)
            (output,) = response.outputs
            assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "FP32", [1, 10])
            values = np.frombuffer(response.raw_output_contents[0], np.float32)
            assert values == pytest.approx(probabilities(seed), abs=1e-5)
            assert response.parameters["convoy_total_seconds"].double_param > 0
            assert response.parameters["convoy_batch_size"].int64_param >= 1

    async def play() -> None:
        async with grpc.aio.insecure_channel(real.grpc) as channel:
            await asyncio.gather(*(caller(channel, number) for number in range(16)))

    asyncio.run(play())


def test_callers_who_cancel_run_out_of_time_or_ask_for_nonsense_disturb_nobody(server: Server) -> None:
    codes = ("OK", "INVALID_ARGUMENT")
    before = {code: server.total("convoy_request_duration_seconds_count", code=code) for code in codes}
    ends: Counter[str] = Counter()

    async def caller(channel: grpc.aio.Channel, number: int) -> None:
        ask = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        chance = random.Random(number)
        for turn in range(40):
            request, kind = classify_request(turn), chance.choice(["good", "good", "cancelled", "late", "wrong"])
            if kind == "wrong":
                request.images[0].raw.pixels = b"too few"
            call: Any = ask(request.SerializeToString(), timeout=0.002 if kind == "late" else None)
            if kind == "cancelled":
                await asyncio.sleep(chance.choice([0, 0.001, 0.004]))
                call.cancel()
            try:
                response = await call
                assert len(response.results) == 1
                ends["OK"] += 1
            except asyncio.CancelledError:
                assert kind == "cancelled"
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1
                if kind != "wrong" and not (kind == "late" and error.code() in LATE):
                    raise

    async def play() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            await asyncio.gather(*(caller(channel, number) for number in range(16)))

    asyncio.run(play())
    assert ends["OK"] > 100
    assert ends["INVALID_ARGUMENT"] > 50
    assert_all_slots_are_freed(server)
    wrong = server.total("convoy_request_duration_seconds_count", code="INVALID_ARGUMENT")
    assert wrong - before["INVALID_ARGUMENT"] == ends["INVALID_ARGUMENT"]
    # A caller may cancel, or give up, an answer that is already on its way.
    assert server.total("convoy_request_duration_seconds_count", code="OK") - before["OK"] >= ends["OK"]


LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_a_killed_engine_loses_no_request_of_a_group(server: Server) -> None:
    async def caller(channel: grpc.aio.Channel, number: int) -> int:
        ask = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        done = 0
        for turn in range(60):
            response = await ask(classify_request(100 * number + turn).SerializeToString())
            done += len(response.results)
        return done

    async def play() -> list[int]:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            calls = [asyncio.create_task(caller(channel, number)) for number in range(12)]
            await asyncio.sleep(0.2)
            os.kill(server.children()["engine"], signal.SIGKILL)
            return await asyncio.gather(*calls)

    assert asyncio.run(play()) == [60] * 12
    assert_all_slots_are_freed(server)


def test_lone_caller_is_answered_as_soon_as_without_company(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        classify = method(channel, "Classify")
        for seed in range(20):
            timings = classify(classify_request(seed)).results[0].timings
            assert timings.batch_size == 1


def stream_request(number: int, deadline_seconds: float = 0.0) -> pb.ClassifyStreamRequest:
    return pb.ClassifyStreamRequest(id=number, request=classify_request(number), deadline_seconds=deadline_seconds)


def test_messages_of_streams_travel_together_and_each_gets_its_own_answer(server: Server, real: Server) -> None:
    before = {name: server.total(f"convoy_{name}") for name in ("batches_total", "images_total")}
    with grpc.insecure_channel(server.grpc) as channel:
        for _ in stream(channel, "ClassifyStream")(stream_request(number, 20) for number in range(200)):
            pass
    batches, images = (server.total(f"convoy_{name}") - count for name, count in before.items())
    assert images == 200
    assert batches < 150
    with grpc.insecure_channel(real.grpc) as channel:
        responses = list(stream(channel, "ClassifyStream")(stream_request(number, 20) for number in range(200)))
    assert sorted(response.id for response in responses) == list(range(200))
    for response in responses:
        check(response.response, response.id, "letters", 10)
    assert_all_slots_are_freed(server)
    assert_all_slots_are_freed(real)


def test_tensors_of_a_stream_come_back_in_order_and_final(real: Server) -> None:
    requests = [infer_request("letters", grey(seed)[None, :, :, None], "image", "UINT8") for seed in range(100)]
    for seed, request in enumerate(requests):
        request.id = str(seed)
    requests[50].inputs[0].shape[1] = 9
    with grpc.insecure_channel(real.grpc) as channel:
        responses = list(stream(channel, "ModelStreamInfer")(iter(requests)))
    assert [response.infer_response.id for response in responses] == [str(seed) for seed in range(100)]
    assert [bool(response.error_message) for response in responses] == [seed == 50 for seed in range(100)]
    for seed, response in enumerate(responses):
        assert response.infer_response.parameters["triton_final_response"].bool_param
        if seed != 50:
            values = np.frombuffer(response.infer_response.raw_output_contents[0], np.float32)
            assert values == pytest.approx(probabilities(seed), abs=1e-5)


def test_message_whose_own_deadline_passes_on_the_way_is_answered_once(server: Server) -> None:
    reason = {"model": "letters", "reason": "DEADLINE_PASSED"}
    before = server.total("convoy_refusals_total", **reason)
    with grpc.insecure_channel(server.grpc) as channel:
        # A batch takes 5 ms, so some are foreseen to be late, some are late, and some are in time.
        limits = [0, 0.001, 0.0055, 0.007, 0.02] * 40
        requests = (stream_request(number, limit) for number, limit in enumerate(limits))
        responses = list(stream(channel, "ClassifyStream")(requests))
    assert sorted(response.id for response in responses) == list(range(200))
    reasons = Counter(response.error.reason for response in responses)
    assert set(reasons) <= {"", "DEADLINE_PASSED", "PREDICTED_LATE"}
    assert reasons["DEADLINE_PASSED"] + reasons["PREDICTED_LATE"] >= 40
    assert reasons[""] >= 40
    assert server.total("convoy_refusals_total", **reason) - before == reasons["DEADLINE_PASSED"]
    assert_all_slots_are_freed(server)


def test_streams_that_break_off_leave_nothing_behind(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        for turn in range(20):
            call = stream(channel, "ClassifyStream")(stream_request(number) for number in range(40))
            for _ in range(turn):
                next(call)
            call.cancel()
    assert_all_slots_are_freed(server)
