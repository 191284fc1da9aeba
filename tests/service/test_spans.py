"""Traces of a real server, as a collector receives them: over both transports, streams and HTTP."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.service import metrics
from convoy.service.client.client import Client
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service.calls import method, stream
from tests.service.collector import ERROR, INTERNAL, OK, SERVER, Collector, Span
from tests.service.running import Server, skip_without
from tests.service.test_overload import _wait_until
from tests.service.test_vision import colourful, encoded, grey

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # milliseconds
LATER = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
ALL = (
    "tracing.share=1",
    "tracing.requests_per_second=0",
    "server.log_requests=all",
    "server.log_requests_per_second=0",
)
LARGEST = 1 << 20  # bytes of a message


def settings(collector: Collector, *more: str) -> list[str]:
    return ["tracing.enabled=true", f"tracing.endpoint={collector.endpoint}", "server.lame_duck_seconds=0", *more]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(quick_repository: Path, transport: str, collector: Collector) -> Iterator[Server]:
    """A server that samples every request, and writes a line about each."""
    with Server(
        quick_repository, settings(collector, *ALL, f"limits.max_message_bytes={LARGEST}"), environment=SOON
    ) as server:
        yield server


@pytest.fixture
def channel(traced: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(traced.grpc) as channel:
        yield channel


def raw(pixels: np.ndarray) -> pb.Image:
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return pb.Image(raw=pb.RawImage(pixels=pixels.tobytes(), height_px=height, width_px=width, channels=channels))


def infer() -> inference_pb2.ModelInferRequest:
    kind = inference_pb2.ModelInferRequest
    values = np.ones((1, 4), np.float32)
    return kind(
        model_name="doubler",
        inputs=[kind.InferInputTensor(name="x", datatype="FP32", shape=values.shape)],
        raw_input_contents=[values.tobytes()],
    )


def call(channel: grpc.Channel, name: str, request: Any, *headers: tuple[str, str]) -> dict[str, str]:
    """Calls a method that answers; the headers of the answer."""
    _, done = method(channel, name).with_call(request, timeout=60, metadata=headers)
    return dict(done.initial_metadata())


def refused(channel: grpc.Channel, name: str, request: Any, *headers: tuple[str, str]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refusal:
        method(channel, name)(request, timeout=60, metadata=headers)
    return refusal.value


def parent(flags: str = "01") -> tuple[str, str, str]:
    """The identifiers of a caller's span, and its header."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-{flags}"


def check_stages(collector: Collector, span: Span, parts: int = 1) -> None:
    """The stages of a span lie one after another within it."""
    found = [each for each in collector.within(span) if each.name in metrics.STAGES]
    assert len(found) == parts * len(metrics.STAGES)
    for part in range(parts):
        order = {name: place for place, name in enumerate(metrics.STAGES)}
        stages = [each for each in found if each.attributes.get("convoy.chunk", 0) == part]
        stages.sort(key=lambda each: order[each.name])
        assert [each.name for each in stages] == list(metrics.STAGES)
        assert all(each.kind == INTERNAL for each in stages)
        assert stages[0].began == span.began
        for one, following in pairwise(stages):
            assert one.began <= one.ended
            assert abs(one.ended - following.began) <= 1  # nanosecond, from rounding
        assert stages[-1].ended <= span.ended


REQUESTS = {
    "a picture": ("Classify", pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=encoded(grey(1)))])),
    "pixels": ("Classify", pb.ClassifyRequest(model="letters", images=[raw(grey(2))])),
    "a map": ("Segment", pb.SegmentRequest(model="colours", images=[raw(colourful(1, 10, 10))])),
    "tensors": ("ModelInfer", infer()),
}


@pytest.mark.both_transports
@pytest.mark.parametrize("kind", REQUESTS)
def test_request_is_a_span_with_its_stages(
    traced: Server, channel: grpc.Channel, collector: Collector, kind: str
) -> None:
    name, request = REQUESTS[kind]
    before = time.time_ns()
    headers = call(channel, name, request)
    span = collector.of_request(headers["x-request-id"])
    service = "inference.GRPCInferenceService" if name == "ModelInfer" else "convoy.v1.Vision"
    assert (span.name, span.kind, span.parent, span.status) == (f"{service}/{name}", SERVER, "", OK)
    assert headers["traceresponse"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert before <= span.began <= span.ended <= time.time_ns()
    check_stages(collector, span)
    expected = {
        "rpc.system.name": "grpc",
        "rpc.method": f"{service}/{name}",
        "rpc.response.status_code": "OK",
        "client.address": "127.0.0.1",
        "convoy.model": request.model_name if name == "ModelInfer" else request.model,
        "convoy.version": "1",
        "convoy.provider": "CPUExecutionProvider",
        "convoy.device": "0",
        "convoy.images": 1,
        "convoy.batch_size": 1,
    }
    assert expected.items() <= span.attributes.items()
    assert span.resource["service.name"] == "convoy"
    assert span.resource["process.pid"] in traced.processes("frontend")


@pytest.mark.both_transports
def test_request_is_a_child_of_its_caller(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, span_id, header = parent()
    name, request = REQUESTS["a picture"]
    named = [("traceparent", header), ("tracestate", "vendor=a1,other=b"), ("x-request-id", "child-1")]
    headers = call(channel, name, request, *named)
    span = collector.wait_for(lambda span: span.trace_id == trace_id and span.kind == SERVER)
    assert (span.parent, span.state) == (span_id, "vendor=a1,other=b")
    assert span.attributes["convoy.request_id"] == headers["x-request-id"] == "child-1"
    assert headers["traceresponse"] == f"00-{trace_id}-{span.span_id}-01"
    check_stages(collector, span)


@pytest.mark.both_transports
def test_caller_that_is_not_sampled_has_no_span(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, _, header = parent("00")
    name, request = REQUESTS["a picture"]
    headers = call(channel, name, request, ("traceparent", header))
    assert "traceresponse" not in headers
    collector.of_request(call(channel, name, request)["x-request-id"])  # a later one has arrived
    assert trace_id not in {span.trace_id for span in collector.spans}


@pytest.mark.both_transports
@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=b"none")]), "INVALID_ARGUMENT", "BAD_IMAGE"),
        (pb.ClassifyRequest(model="nosuch", images=[raw(grey(1))]), "NOT_FOUND", "UNKNOWN_MODEL"),
        (b"\xff", "INVALID_ARGUMENT", "BAD_REQUEST"),
    ],
)
def test_refusal_is_an_error_with_its_reason(
    channel: grpc.Channel, collector: Collector, request_: Any, code: str, reason: str
) -> None:
    error = refused(channel, "Classify", request_)
    headers = dict(error.initial_metadata() or error.trailing_metadata())  # type: ignore[attr-defined]
    span = collector.of_request(headers["x-request-id"])
    assert (span.status, span.attributes["error.type"]) == (ERROR, reason)
    assert span.message == f"{reason}: {error.details()}"  # type: ignore[attr-defined]
    assert span.attributes["rpc.response.status_code"] == code
    assert "convoy.batch_size" not in span.attributes


@pytest.mark.both_transports
def test_image_that_is_refused_alone_is_an_event(channel: grpc.Channel, collector: Collector) -> None:
    images = [pb.Image(encoded=b"none"), pb.Image(encoded=encoded(grey(3))), pb.Image(encoded=encoded(grey(4)))]
    headers = call(channel, "Classify", pb.ClassifyRequest(model="letters", images=images))
    span = collector.of_request(headers["x-request-id"])
    assert (span.status, span.attributes["convoy.images"], span.attributes["convoy.chunks"]) == (OK, 2, 2)
    assert [(event["name"], event["error.type"]) for event in span.events] == [("refused", "BAD_IMAGE")]
    check_stages(collector, span, parts=2)


@pytest.mark.both_transports
def test_each_request_of_a_stream_is_a_span(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, span_id, header = parent()
    good, bad = REQUESTS["pixels"][1], pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=b"none")])
    requests = [pb.ClassifyStreamRequest(id=number, request=each) for number, each in enumerate((good, bad, good))]
    answers = stream(channel, "ClassifyStream")(iter(requests), timeout=60, metadata=[("traceparent", header)])
    assert len(list(answers)) == 3
    assert "traceresponse" not in dict(answers.initial_metadata())
    collector.of_request(call(channel, *REQUESTS["a picture"])["x-request-id"])  # a later one has arrived
    spans = [span for span in collector.spans if span.trace_id == trace_id and span.kind == SERVER]
    assert len(spans) == len({span.span_id for span in spans}) == 3
    assert {(span.name, span.parent) for span in spans} == {("convoy.v1.Vision/ClassifyStream", span_id)}
    assert sorted(span.status for span in spans) == [OK, OK, ERROR]
    for span in spans:
        if span.status == OK:
            check_stages(collector, span)


@pytest.mark.both_transports
def test_requests_of_a_stream_begin_traces_of_their_own(channel: grpc.Channel, collector: Collector) -> None:
    requests = [pb.ClassifyStreamRequest(id=number, request=REQUESTS["pixels"][1]) for number in range(2)]
    named = [("x-request-id", f"stream-{secrets.token_hex(4)}")]
    answers = stream(channel, "ClassifyStream")(iter(requests), timeout=60, metadata=named)
    assert len(list(answers)) == 2
    collector.of_request(call(channel, *REQUESTS["a picture"])["x-request-id"])
    spans = [span for span in collector.spans if span.attributes.get("convoy.request_id") == named[0][1]]
    assert len({span.trace_id for span in spans}) == len(spans) == 2
    assert {span.parent for span in spans} == {""}


@pytest.mark.both_transports
def test_lines_about_a_request_have_its_names(traced: Server, channel: grpc.Channel, collector: Collector) -> None:
    headers = call(channel, *REQUESTS["a picture"])
    span = collector.of_request(headers["x-request-id"])
    after = len(traced.log)
    refused(channel, "Classify", pb.ClassifyRequest(model="nosuch"), ("x-request-id", "line-1"))
    traced.wait_for_log("request refused", after=after)
    lines = {line["request_id"]: line for line in traced.log if line["message"].startswith("request ")}
    assert lines[headers["x-request-id"]]["message"] == "request answered"
    assert lines[headers["x-request-id"]]["trace_id"] == span.trace_id
    assert lines[headers["x-request-id"]]["span_id"] == span.span_id
    assert lines["line-1"]["reason"] == "UNKNOWN_MODEL"


def test_call_that_no_method_has_is_an_error_under_a_name_of_ours(
    traced: Server, channel: grpc.Channel, collector: Collector
) -> None:
    after = len(traced.log)
    for path in ("/convoy.v1.Vision/Nosuch", "/made.Up/Name"):
        trace_id, _, header = parent()
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(path)(b"", metadata=[("traceparent", header)], timeout=60)
        span = collector.wait_for(lambda span, wanted=trace_id: span.trace_id == wanted)
        assert (span.name, span.status, span.attributes["error.type"]) == ("_OTHER", ERROR, "UNIMPLEMENTED")
    line = traced.wait_for_log("call refused", after=after)
    assert (line["path"], line["reason"]) == ("/convoy.v1.Vision/Nosuch", "UNIMPLEMENTED")
    assert line["trace_id"]


def test_message_that_is_refused_while_it_arrives_is_an_error(
    traced: Server, channel: grpc.Channel, collector: Collector
) -> None:
    skip_without("nghttp2")  # gRPC's own server refuses it by itself
    after = len(traced.log)
    refused(channel, "Classify", bytes(LARGEST + 1), ("x-request-id", "large-1"))
    line = traced.wait_for_log("call refused", after=after)
    assert (line["request_id"], line["path"]) == ("large-1", "/convoy.v1.Vision/Classify")
    span = collector.wait_for(lambda span: span.trace_id == line["trace_id"])
    assert (span.name, span.status) == ("convoy.v1.Vision/Classify", ERROR)
    assert span.attributes["error.type"] == span.attributes["rpc.response.status_code"] == "RESOURCE_EXHAUSTED"


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request over HTTP."""
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def test_request_over_http_is_a_span_around_its_call(traced: Server, collector: Collector) -> None:
    trace_id, span_id, header = parent()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    url = f"{traced.http}/v2/models/doubler/infer"
    status, headers = ask(url, json.dumps(body).encode(), Traceparent=header, Tracestate="vendor=a1")
    span = collector.wait_for(lambda span: span.trace_id == trace_id and span.kind == SERVER)
    assert (status, span.name, span.parent, span.state) == (200, "POST /v2/models/{model}/infer", span_id, "vendor=a1")
    assert (span.status, headers["traceresponse"]) == (OK, f"00-{trace_id}-{span.span_id}-01")
    expected = {"http.request.method": "POST", "http.response.status_code": 200, "url.scheme": "http"}
    expected |= {"http.route": "/v2/models/{model}/infer", "url.path": "/v2/models/doubler/infer"}
    assert expected.items() <= span.attributes.items()
    (inside,) = collector.within(span)
    assert (inside.name, inside.kind) == ("inference.GRPCInferenceService/ModelInfer", INTERNAL)
    assert inside.attributes["convoy.request_id"] == headers["x-request-id"]
    assert span.began <= inside.began <= inside.ended <= span.ended
    check_stages(collector, inside)


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/v2/models/doubler/infer", b"{", 400, "BAD_REQUEST"),
        ("/v2/models/nosuch/infer", b'{"inputs": []}', 404, "UNKNOWN_MODEL"),
        ("/nosuch", None, 404, "UNKNOWN_PATH"),
    ],
)
def test_refusal_over_http_is_an_error_and_one_line(
    traced: Server, collector: Collector, path: str, body: bytes | None, status: int, reason: str
) -> None:
    trace_id, _, header = parent()
    name = secrets.token_hex(4)
    found, headers = ask(f"{traced.http}{path}", body, Traceparent=header, X_Request_Id=name)
    assert (found, headers["x-request-id"]) == (status, name)
    span = collector.wait_for(lambda span: span.trace_id == trace_id and span.kind == SERVER)
    assert (span.status, span.attributes["error.type"]) == (ERROR, reason)
    assert path == "/nosuch" or span.attributes["http.route"] == "/v2/models/{model}/infer"
    marker = secrets.token_hex(4)
    ask(f"{traced.http}/nosuch", X_Request_Id=marker)
    while not any(line.get("request_id") == marker for line in traced.log):
        traced.wait_for_log("call refused", after=len(traced.log) - 1)
    (line,) = [line for line in traced.log if line.get("request_id") == name]
    assert (line["reason"], line["trace_id"]) == (reason, trace_id)


def test_probes_have_no_span(traced: Server, collector: Collector) -> None:
    traces = []
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/"):
        trace_id, _, header = parent()
        assert "traceresponse" not in ask(f"{traced.http}{path}", Traceparent=header)[1]
        traces.append(trace_id)
    trace_id, _, header = parent()
    ask(f"{traced.http}/v2", Traceparent=header)
    collector.wait_for(lambda span: span.trace_id == trace_id and span.kind == SERVER)
    assert not {span.trace_id for span in collector.spans} & set(traces)


def uses_grpc(server: Server) -> bool:
    """Whether a front end has loaded gRPC's library, which sends spans."""
    maps = Path(f"/proc/{server.children()['frontend']}/maps").read_text()
    return "cygrpc" in maps


def test_nothing_is_sampled_but_what_callers_sample(quick_repository: Path) -> None:
    """And at SIGTERM what is queued is sent."""
    with Collector() as collector:
        more = ("tracing.share=0", "tracing.service_name=pictures", "server.frontends=2")
        environment = {**LATER, "OTEL_EXPORTER_OTLP_HEADERS": "x-token=abc"}
        with Server(quick_repository, settings(collector, *more), environment=environment) as server:
            trace_id, _, header = parent()
            with grpc.insecure_channel(server.grpc) as channel:
                assert not call(channel, *REQUESTS["a picture"]).keys() & {"traceresponse", "x-request-id"}
                call(channel, *REQUESTS["pixels"], ("traceparent", header))
            assert collector.spans == []  # they wait
            assert server.stop() == 0
        assert {span.trace_id for span in collector.spans} == {trace_id}
        assert len(collector.spans) == 1 + len(metrics.STAGES)
        assert {span.resource["service.name"] for span in collector.spans} == {"pictures"}
        assert collector.headers[0]["x-token"] == "abc"


def test_a_variable_that_opentelemetry_cannot_use_ends_the_start(quick_repository: Path) -> None:
    with Server(
        quick_repository,
        ["tracing.enabled=true"],
        environment={"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
        wait=False,
    ) as server:
        server.wait_for_log("tracing: ")
        assert server.process.wait(60) == 2
    (line,) = [line for line in server.log if line["level"] == "error"]
    assert line["message"].startswith("tracing: OpenTelemetry cannot use its variables (OTEL_...): ")
    assert "soon" in line["message"]


def test_without_traces_there_are_neither_spans_nor_their_library(quick_repository: Path, traced: Server) -> None:
    skip_without("nghttp2")  # the other transport is that library
    with Server(quick_repository, ["server.lame_duck_seconds=0", "server.transport=nghttp2"]) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            headers = call(channel, *REQUESTS["a picture"], ("traceparent", parent()[2]))
        assert not headers.keys() & {"traceresponse", "x-request-id"}
        assert not uses_grpc(server)
    assert uses_grpc(traced)


def test_logged_requests_have_names_without_traces(quick_repository: Path) -> None:
    with Server(quick_repository, ["server.lame_duck_seconds=0", "server.log_requests=all"]) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            over_grpc = call(channel, *REQUESTS["pixels"])["x-request-id"]
        _, over_http = ask(f"{server.http}/v2/models/doubler/infer", b"{")
        server.wait_for_log("call refused")
        lines = [line for line in server.log if "request_id" in line]
        assert [line["request_id"] for line in lines] == [over_grpc, over_http["x-request-id"]]
        assert [line["message"] for line in lines] == ["request answered", "call refused"]
        assert not any("trace_id" in line for line in lines)


def test_dead_collector_delays_nobody_and_fills_no_log(quick_repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        more = [f"tracing.endpoint=http://127.0.0.1:{port}", *ALL[:2], "tracing.enabled=true"]
        environment = {**SOON, "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_BSP_MAX_QUEUE_SIZE": "512"}
        with Server(quick_repository, [*more, "server.lame_duck_seconds=0"], environment=environment) as server:

            def failures() -> list[str]:
                """What the log says of spans that were not accepted, in the words of OpenTelemetry."""
                told = [line["message"] for line in server.log if line["message"].startswith("spans are lost: ")]
                return [text for text in told if "more end" not in text]

            with Client(server.grpc) as client:
                for number in range(200):  # 1,800 spans: the queue overflows
                    client.classify(grey(number), "letters")
                line = server.wait_for_log("spans are lost")
                assert line["level"] == "warning"
                _wait_until(failures)
                for number in range(20):
                    client.classify(grey(number), "letters")
            assert str(port) in failures()[0]
            assert server.total("convoy_images_total", model="letters") == 220
            taken.close()
            with Collector(port) as collector:
                with Client(server.grpc) as client:
                    client.classify(grey(1), "letters")
                server.wait_for_log("spans arrive again")
                assert collector.spans
            began = time.monotonic()
            assert server.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < 20  # the grace is 20 s: it does not wait for a collector
            assert len(failures()) == 1
            assert len([line for line in server.log if line["message"].startswith("spans are lost: more end")]) <= 1
            assert not [line for line in server.log if line["level"] == "raw"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([], "tracing.enabled wants OpenTelemetry, which is not installed: pip install 'convoy[tracing]'"),
        (["--set", "tracing.endpoint=collector:4317"], "'collector:4317', want http://HOST:PORT or https://HOST:PORT"),
    ],
)
def test_start_without_the_library_is_one_line(
    quick_repository: Path, tmp_path: Path, extra: list[str], said: str
) -> None:
    (tmp_path / "opentelemetry").mkdir()  # hides the real one
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    command = [str(Path(sys.executable).with_name("convoy")), "serve", "--repository", str(quick_repository)]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--set", "tracing.enabled=true", *extra]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
