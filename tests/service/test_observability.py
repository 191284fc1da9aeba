"""Metrics, statistics, health and reflection of a real server."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from convoy.service import metrics
from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.metric_files import DIRECTORY
from convoy.service.pb import inference_pb2 as pb
from tests.service import networks
from tests.service.calls import method
from tests.service.frontend.transport.raw import GOAWAY, SETTINGS, Raw, frame
from tests.service.running import Server
from tests.service.test_vision import colourful, encoded, grey

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def counted(quick_repository: Path, transport: str) -> Iterator[Server]:
    """A server with two front ends that has answered a known load: 60 labels, 25 class maps, 7 bad images."""
    with Server(quick_repository, ["server.frontends=2", "server.lame_duck_seconds=0"]) as server:

        def load(number: int) -> None:
            # A connection each, so that the kernel deals them out to both front ends.
            with Client(server.grpc) as client:
                for turn in range(6):
                    client.classify(grey(10 * number + turn), "letters")
                if number < 5:
                    client.segment_many([colourful(turn, 10, 10) for turn in range(5)], "colours")
                if number < 7:
                    with pytest.raises(ServerError):
                        client.classify(b"none", "letters")

        with ThreadPoolExecutor(10) as threads:
            list(threads.map(load, range(10)))
        for _ in range(40):  # until both have had a connection: each goes to either at random
            if _counting_processes(server) == 3:
                break
            with Client(server.grpc) as client:
                client.models()
        yield server


def test_counts_are_exact_over_all_processes(counted: Server) -> None:
    count = "convoy_request_duration_seconds_count"
    assert counted.total(count, model="letters", method="Classify", code="OK") == 60
    assert counted.total(count, model="letters", code="INVALID_ARGUMENT") == 7
    assert counted.total(count, model="colours", method="Segment", code="OK") == 5
    assert counted.total("convoy_images_total", model="colours", version="1") == 25
    assert counted.total("convoy_refusals_total", reason="BAD_IMAGE") == 7
    assert counted.total("convoy_batch_size_sum", model="letters") == 60
    assert counted.total("convoy_batch_size_sum", model="colours") == 25
    for stage in metrics.STAGES:
        assert counted.total("convoy_stage_duration_seconds_count", model="letters", stage=stage) == 60
    # Padded from 10x10 to 12x12.
    assert counted.total("convoy_padding_pixels_total", model="colours") == 25 * 44


def test_every_answer_meets_or_misses_the_objective_of_its_version(counted: Server) -> None:
    for model, answered in (("letters", 60), ("colours", 5)):
        assert counted.total("convoy_answers_total", model=model, version="1") == answered
        objective = counted.total("convoy_model_latency_objective_seconds", model=model, version="1")
        assert objective >= 0.1


def test_what_is_of_low_priority_is_not_judged_by_the_objective(small: Server) -> None:
    def judged() -> float:
        return small.total("convoy_answers_total", model="letters")

    before = judged()
    with Client(small.grpc, priority="low") as patient:
        patient.classify(grey(1), "letters")  # alone; the stream's requests travel together
        list(patient.classify_stream((grey(number) for number in range(8)), "letters"))
    assert judged() == before
    with Client(small.grpc) as client:
        client.classify(grey(1), "letters")
        list(client.classify_stream((grey(number) for number in range(8)), "letters"))
    assert judged() == before + 9


def test_predictions_are_compared_with_what_batches_took(counted: Server) -> None:
    for time in ("predicted", "measured"):
        assert counted.total("convoy_batch_prediction_seconds_total", model="letters", version="1", time=time) > 0
    assert counted.wait_for_total("convoy_queue_seconds", 0, model="letters") == 0
    assert ("convoy_queue_seconds", frozenset({("model", "letters"), ("device", "0")})) in counted.samples()


def test_both_front_ends_had_a_part_in_it(counted: Server) -> None:
    assert _counting_processes(counted) == 3


def _counting_processes(server: Server) -> int:
    """The engine and the front ends that have counted something."""
    environment = Path(f"/proc/{server.children()['engine']}/environ").read_bytes().decode().split("\0")
    directory = dict(entry.partition("=")[::2] for entry in environment)[DIRECTORY]
    return len(list(Path(directory).glob("histogram_*.db")))


def test_histograms_span_from_100_microseconds_to_10_seconds(counted: Server) -> None:
    bounds = {
        float(dict(labels)["le"])
        for name, labels in counted.samples()
        if name == "convoy_request_duration_seconds_bucket"
    }
    assert min(bounds) == 1e-4
    assert sorted(bounds)[-2:] == [10.0, float("inf")]


def test_a_name_a_caller_made_up_becomes_no_label(counted: Server) -> None:
    with Client(counted.grpc) as client, pytest.raises(ServerError):
        client.classify(grey(1), "made-up-name")
    assert not any("made-up-name" in dict(labels).values() for _, labels in counted.samples())
    assert counted.total("convoy_refusals_total", reason="UNKNOWN_MODEL") >= 1


def statistics(server: Server, name: str) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        found = method(channel, "ModelStatistics")(pb.ModelStatisticsRequest(name=name)).model_stats
    return found[0]


def test_model_statistics_agree_with_the_metrics(counted: Server) -> None:
    found = statistics(counted, "letters")
    stats = found.inference_stats
    assert (found.name, found.version) == ("letters", "1")
    assert found.inference_count == counted.total("convoy_batch_size_sum", model="letters") == 60
    assert found.execution_count == counted.total("convoy_batch_size_count", model="letters")
    assert (stats.success.count, stats.fail.count) == (60, 7)
    for field, stage in (("queue", "queue"), ("compute_input", "gather"), ("compute_infer", "run")):
        duration = getattr(stats, field)
        assert duration.count == 60
        seconds = counted.total("convoy_stage_duration_seconds_sum", model="letters", stage=stage)
        assert duration.ns == pytest.approx(seconds * 1e9, abs=1)
    assert sum(batch.batch_size * batch.compute_infer.count for batch in found.batch_stats) == 60
    assert sum(batch.compute_infer.count for batch in found.batch_stats) == found.execution_count
    assert found.last_inference > 1_700_000_000_000


def test_statistics_of_all_models_come_where_none_is_named(counted: Server, quick_repository: Path) -> None:
    with grpc.insecure_channel(counted.grpc) as channel:
        found = method(channel, "ModelStatistics")(pb.ModelStatisticsRequest()).model_stats
    assert {entry.name for entry in found} == {folder.name for folder in quick_repository.iterdir()} > {"letters"}


def test_the_names_of_tritons_dashboards_stand_beside_ours(counted: Server) -> None:
    assert counted.total("nv_inference_request_success", model="letters", version="1") == 60
    assert counted.total("nv_inference_request_failure", model="letters", version="1") == 7
    assert counted.total("nv_inference_count", model="colours") == 25
    assert counted.total("nv_inference_compute_infer_duration_us", model="letters") == pytest.approx(
        1e6 * counted.total("convoy_stage_duration_seconds_sum", model="letters", stage="run"), abs=1
    )


def test_the_provider_shows_in_the_metrics(counted: Server) -> None:
    assert counted.total("convoy_model_ready", model="letters", version="1", provider="CPUExecutionProvider") == 1


@pytest.mark.both_transports
def test_health_is_told_for_the_server_its_services_and_each_model(counted: Server) -> None:
    with grpc.insecure_channel(counted.grpc) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "convoy.v1.Vision", "inference.GRPCInferenceService", "letters", "letters/1"):
            assert check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.both_transports
def test_a_watcher_sees_the_server_drain(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, ["server.lame_duck_seconds=5"]) as server, grpc.insecure_channel(server.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="letters"))
        assert next(watch).status == SERVING
        server.process.terminate()
        assert next(watch).status == NOT_SERVING
        assert method(channel, "ServerLive")(pb.ServerLiveRequest()).live
        assert not method(channel, "ServerReady")(pb.ServerReadyRequest()).ready
        assert server.process.wait(60) == 0


@pytest.mark.both_transports
def test_reflection_describes_every_service_and_its_messages(counted: Server) -> None:
    with grpc.insecure_channel(counted.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert services >= {"convoy.v1.Vision", "inference.GRPCInferenceService", "grpc.health.v1.Health"}
        pool = DescriptorPool(database)
        for service in services:
            assert pool.FindServiceByName(service).methods
        assert (
            pool.FindMessageTypeByName("inference.ModelInferRequest").fields_by_name["raw_input_contents"].number == 7
        )


def test_the_request_of_the_readme_can_be_built_from_reflection_alone(counted: Server) -> None:
    """What grpcurl does: descriptors by reflection, the request from JSON, the answer back to JSON."""
    with grpc.insecure_channel(counted.grpc) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        classify = pool.FindServiceByName("convoy.v1.Vision").methods_by_name["Classify"]
        image = base64.b64encode(encoded(grey(1))).decode()
        body = json.dumps({"model": "letters", "top_k": 3, "images": [{"encoded": image}]})
        request = json_format.Parse(body, GetMessageClass(classify.input_type)())
        call = channel.unary_unary(
            "/convoy.v1.Vision/Classify",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(classify.output_type).FromString,
        )
        answer = json_format.MessageToDict(call(request))
    assert len(answer["results"][0]["classification"]["labels"]) == 3


def test_http_answers_only_what_it_offers(counted: Server) -> None:
    assert counted.get(f"{counted.http}/readyz")[0] == 200
    assert counted.get(f"{counted.http}/anything")[0] == 404
    assert counted.get(f"{counted.metrics}/")[0] == 404


def test_a_large_answer_is_whole(counted: Server) -> None:
    image = colourful(1, 1500, 1800)
    with Client(counted.grpc) as client:
        np.testing.assert_array_equal(client.segment(image, "colours").mask, image.argmax(2))


@pytest.mark.both_transports
def test_last_words_of_a_caller_forge_no_line_of_the_log(small: Server) -> None:
    forged = b'x\n{"level":"error","message":"forged"}\n\x1b[2J\r\n'
    host, _, port = small.grpc.rpartition(":")
    before = len(small.log)
    for code in (0, 2, 11):
        with Raw((host, int(port))) as raw:
            raw.until(SETTINGS)
            raw.send(frame(GOAWAY, payload=bytes(4) + code.to_bytes(4, "big") + forged))
            raw.send(forged)
    with Client(small.grpc) as client:
        client.models()
    written = [record for record in small.log[before:] if record["level"] == "raw" or "forged" in record["message"]]
    assert written == []


@pytest.mark.parametrize(("setting", "answered", "refused"), [("none", 0, 0), ("failed", 0, 4), ("all", 3, 4)])
def test_log_has_the_requests_that_it_is_to_have(
    setting: str, answered: int, refused: int, small_repository: Path, transport: str
) -> None:
    settings = [f"server.log_requests={setting}", "server.lame_duck_seconds=0"]
    with Server(small_repository, settings) as server:
        with Client(server.grpc) as client:
            client.classify(grey(1), "letters")
            client.classify_many([grey(1), b"none"], "letters")  # one image of a request
            with pytest.raises(ServerError):
                client.classify(grey(1), "nobody")
        with grpc.insecure_channel(server.grpc) as channel:
            infer = method(channel, "ModelInfer")
            for request in (pb.ModelInferRequest(model_name="letters"), pb.ModelInferRequest(model_name="nobody")):
                with pytest.raises(grpc.RpcError):
                    infer(request, timeout=10, metadata=[("x-request-id", "a-17")])
            method(channel, "ServerLive")(pb.ServerLiveRequest())  # a probe: it runs nothing
            with Client(server.grpc) as client:
                client.segment(colourful(1, 10, 10), "colours")
        server.stop()
        server.wait_for_log("ended")  # the last line: the others have been read
    lines = [record for record in server.log if record["message"].startswith("request ")]
    assert [line["message"] for line in lines].count("request answered") == answered
    failures = [line for line in lines if line["message"] == "request refused"]
    assert len(failures) == refused
    assert len(lines) == answered + refused
    if failures:
        image, unknown, *others = failures
        assert (image["method"], image["model"], image["reason"]) == ("Classify", "letters", "BAD_IMAGE")
        assert (unknown["model"], unknown["reason"]) == ("", "UNKNOWN_MODEL")
        assert "nobody" in unknown["detail"]
        assert [(line["method"], line["request_id"]) for line in others] == [("ModelInfer", "a-17")] * 2
        assert all(line["peer"] == "127.0.0.1" and 0 < line["seconds"] < 10 for line in failures)
