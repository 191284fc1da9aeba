"""Nobody comes in who may not, and everybody who may does: every method and every page, for every kind of caller."""

import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import ServerError
from convoy.service.commands.token import line
from convoy.service.pb import inference_pb2
from tests.service import networks
from tests.service.calls import INFERENCE, VISION, method, reason, stream
from tests.service.certificates import Authority
from tests.service.running import Server
from tests.service.test_doors import Files, wait_for

pytestmark = pytest.mark.both_transports

SECONDS = 20
TOKENS = {name: f"convoy_{name}_{'x' * 40}" for name in ("good", "admin", "metrics", "other", "all", "expired")}
MANAGEMENT = {
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryRegister",
    "CudaSharedMemoryRegister",
    "TraceSetting",
    "LogSettings",
}
# That name a model.
OF_MODELS = {
    *("Classify", "Segment", "ClassifyStream", "SegmentStream", "ModelInfer", "ModelStreamInfer"),
    *("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
}
UNKNOWN = {f"/{VISION.full_name}/Nothing", "/nothing.Nothing/Nothing", "/grpc.health.v1.Health/Nothing", "/x"}
WHO = "caller is unknown: want 'authorization: Bearer TOKEN' with a valid token, or the certificate of a caller"
NO = "caller may not do this"


class Method(NamedTuple):
    """A method of the server, with its request and its response."""

    path: str
    name: str
    streams: bool
    request: bytes
    response: type[Message] | None


def file_of_callers() -> str:
    """The lines of all callers of the tests."""
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
    return "\n".join(
        [
            line("good", TOKENS["good"], ["letters", "doubler"], [], future),
            line("admin", TOKENS["admin"], [], ["admin"], None),
            line("metrics", TOKENS["metrics"], [], ["metrics"], None),
            line("other", TOKENS["other"], ["another"], [], None),
            line("all", TOKENS["all"], ["*"], ["metrics", "admin"], None),
            line("expired", TOKENS["expired"], ["*"], ["metrics", "admin"], past),
        ]
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), found, "letters")
    networks.save(networks.doubler(), found, "doubler")
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("callers") / "callers.toml"
    found.write_text(file_of_callers())
    return found


@pytest.fixture(scope="module")
def guarded(repository: Path, file: Path, transport: str) -> Iterator[Server]:
    """A server that knows the callers of `file`."""
    with Server(repository, [f"access.callers={file}", "server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture(scope="module")
def channel(guarded: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(guarded.grpc) as opened:
        yield opened


def put(file: Path, text: str) -> None:
    """Puts another file into the place of one that a server follows: it must not read half of it."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def methods() -> list[Method]:
    """Every method of every service, with a request for the model `letters` where it names one."""
    alpha = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    services = [VISION, INFERENCE, health_pb2.DESCRIPTOR.services_by_name["Health"], alpha]
    found = []
    for service in services:
        for each in service.methods:
            path = f"/{service.full_name}/{each.name}"
            paths = [path, path.replace("v1alpha", "v1")] if service is alpha else [path]
            streams = each.client_streaming or each.server_streaming
            request, response = _request(each), GetMessageClass(each.output_type)
            found += [Method(path, each.name, streams, request, response) for path in paths]
    return found


def _request(described: Any) -> bytes:
    message = GetMessageClass(described.input_type)()
    inner = message.request if hasattr(message, "request") else message
    for field in ("model", "model_name", "name"):
        if hasattr(inner, field) and described.name in OF_MODELS:
            setattr(inner, field, "letters")
    if hasattr(message, "list_services"):
        message.list_services = "*"
    return bytes(message.SerializeToString())


def header(kind: str) -> list[tuple[str, str]]:
    """The metadata of a kind of caller."""
    if kind == "none":
        return []
    token = {
        "bad": "convoy_bad",
        "truncated": TOKENS["all"][:-1],
        "lengthened": TOKENS["all"] + "x",
        "another scheme": TOKENS["all"],
        "empty": "",
    }.get(kind, TOKENS.get(kind, ""))
    return [("authorization", f"{'Basic' if kind == 'another scheme' else 'Bearer'} {token}".strip())]


def answer(channel: grpc.Channel, called: Method, kind: str) -> tuple[str, str]:
    """The status and the message of a call; of the first answer of a stream that has a status of its own."""
    try:
        if not called.streams:
            data = channel.unary_unary(called.path)(called.request, timeout=SECONDS, metadata=header(kind))
            return "OK", str(data)
        answers = channel.stream_stream(called.path)(iter([called.request]), timeout=SECONDS, metadata=header(kind))
        first = next(iter(answers))
        answers.cancel()
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    if called.response is None:
        return "OK", ""
    message: Any = called.response.FromString(first)
    if called.name in ("ClassifyStream", "SegmentStream") and message.HasField("error"):
        return next(code.name for code in grpc.StatusCode if code.value[0] == message.error.code), message.error.message
    if called.name == "ModelStreamInfer" and message.error_message:
        return message.infer_response.parameters["convoy_status"].string_param, message.error_message
    return "OK", ""


STRANGERS = ("none", "bad", "truncated", "lengthened", "another scheme", "empty", "expired")


def test_methods_of_this_test_are_those_of_the_server(channel: grpc.Channel) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    answers = channel.stream_stream(path)(iter([request]), timeout=SECONDS, metadata=header("good"))
    (first,) = [reflection_pb2.ServerReflectionResponse.FromString(each) for each in answers]
    names = {service.name for service in first.list_services_response.service}
    assert names == {each.path.split("/")[1] for each in methods()}


@pytest.mark.parametrize("kind", STRANGERS)
def test_no_method_answers_a_stranger(channel: grpc.Channel, kind: str) -> None:
    unknown = [Method(path, "", streams, b"", None) for path in UNKNOWN for streams in (False, True)]
    for each in [*methods(), *unknown]:
        assert answer(channel, each, kind) == ("UNAUTHENTICATED", WHO), each.path


@pytest.mark.parametrize("kind", ["good", "other", "metrics", "admin", "all"])
def test_every_method_answers_those_who_may_and_nobody_else(channel: grpc.Channel, kind: str) -> None:
    for each in methods():
        may = (
            kind in ("admin", "all")
            if each.name in MANAGEMENT
            else kind in ("good", "all")
            if each.name in OF_MODELS
            else True
        )
        code, message = answer(channel, each, kind)
        if may:
            assert code not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), each.path
        else:
            assert (code, message) == ("PERMISSION_DENIED", NO), each.path
    for path in UNKNOWN:
        assert answer(channel, Method(path, "", False, b"", None), kind)[0] == "UNIMPLEMENTED"


def test_model_that_a_caller_may_not_call_looks_like_one_that_does_not_exist(channel: grpc.Channel) -> None:
    infer = method(channel, "ModelInfer")
    for name in ("doubler", "nothing"):
        with pytest.raises(grpc.RpcError) as caught:
            infer(inference_pb2.ModelInferRequest(model_name=name), metadata=header("other"), timeout=SECONDS)
        assert (caught.value.details(), reason(caught.value)) == (NO, "NOT_PERMITTED")


def test_refusal_names_the_models_of_the_caller_alone(channel: grpc.Channel) -> None:
    infer = method(channel, "ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:  # it may call a model that the server lacks
        infer(inference_pb2.ModelInferRequest(model_name="another"), metadata=header("other"), timeout=SECONDS)
    assert caught.value.details() == "model 'another' is unknown: the server has none"


def test_lists_have_the_models_of_the_caller_alone(guarded: Server, channel: grpc.Channel) -> None:
    for kind, expected in (("good", {"letters", "doubler"}), ("other", set()), ("all", {"letters", "doubler"})):
        with Client(guarded.grpc, credentials=Credentials(token=TOKENS[kind])) as client:
            assert {model.model for model in client.models(SECONDS)} == expected
        named = {"metadata": header(kind), "timeout": SECONDS}
        index = method(channel, "RepositoryIndex")(inference_pb2.RepositoryIndexRequest(), **named)
        assert {entry.name for entry in index.models} == expected
        found = method(channel, "ModelStatistics")(inference_pb2.ModelStatisticsRequest(), **named)
        assert {entry.name for entry in found.model_stats} == expected
        statuses = channel.unary_unary("/grpc.health.v1.Health/List")(b"", **named)
        names = health_pb2.HealthListResponse.FromString(statuses).statuses
        assert {name for name in names if name and "." not in name and "/" not in name} == expected


def test_health_of_a_model_is_for_those_who_may_call_it(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="letters").SerializeToString()
    path = "/grpc.health.v1.Health/Check"
    channel.unary_unary(path)(request, metadata=header("good"), timeout=SECONDS)
    for name in ("letters", "letters/1", "nothing"):
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        for each, streams in ((path, False), ("/grpc.health.v1.Health/Watch", True)):
            code, _ = answer(channel, Method(each, "", streams, request, None), "other")
            assert code == "PERMISSION_DENIED"


def test_unnamed_model_is_one_that_the_caller_may_call(channel: grpc.Channel) -> None:
    called = next(each for each in methods() if each.name == "Classify")._replace(request=b"")
    assert answer(channel, called, "other") == ("PERMISSION_DENIED", NO)
    assert answer(channel, called, "good")[0] == "INVALID_ARGUMENT"  # no images


def page(url: str, kind: str, verb: str = "GET") -> tuple[int, str]:
    """The status and the body of a page."""
    request = urllib.request.Request(url, method=verb, headers=dict(header(kind)))
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_page_is_shown_to_a_stranger(guarded: Server) -> None:
    urls = [f"{guarded.http}{path}" for path in ("/livez", "/readyz", "/v2", "/nothing", "/metrics")]
    urls += [f"{guarded.metrics}{path}" for path in ("/metrics", "/", "/nothing", "/livez")]
    for url in urls:
        for kind in STRANGERS:
            in_json = f'{{"error":"{WHO}","reason":"UNKNOWN_CALLER"}}'
            said = WHO + "\n" if url.startswith(guarded.metrics) else in_json
            assert page(url, kind) == (401, said)
            for verb in ("OPTIONS", "POST", "DELETE", "TRACE"):
                assert page(url, kind, verb)[0] == 401
            assert page(url, kind, "HEAD") == (401, "")


def test_pages_are_shown_to_those_who_may_see_them(guarded: Server) -> None:
    for kind in ("good", "other", "metrics", "admin", "all"):
        assert page(f"{guarded.http}/livez", kind)[0] == page(f"{guarded.http}/readyz", kind)[0] == 200
        expected = 200 if kind in ("metrics", "all") else 403
        assert page(f"{guarded.metrics}/metrics", kind)[0] == expected
        assert page(f"{guarded.http}/nothing", kind)[0] == 404


def test_refusals_are_counted(guarded: Server, channel: grpc.Channel) -> None:
    def counted() -> float:
        _, text = page(f"{guarded.metrics}/metrics", "metrics")
        name = 'convoy_refusals_total{model="",reason="UNKNOWN_CALLER"}'
        return sum(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(name))

    before = counted()
    called = next(each for each in methods() if each.name == "ListModels")
    for _ in range(3):
        answer(channel, called, "bad")
    assert counted() == before + 3


def test_commands_send_a_token(
    guarded: Server, convoy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.service.commands.server.PROBE_DEADLINE", 60.0)  # a server may pause
    token = tmp_path / "token"
    token.write_text(TOKENS["good"] + "\n")
    assert "letters" in convoy("models", "--server", guarded.grpc, "--token-file", token).stdout
    assert convoy("health", "--server", guarded.grpc, "--token-file", token).stdout == "SERVING\n"
    assert convoy("health", "--server", guarded.grpc).stdout == "UNAUTHENTICATED\n"
    assert convoy("models", "--server", guarded.grpc).stderr == f"convoy models: {WHO}\n"


def test_requests_and_streams_of_a_caller_are_served(guarded: Server) -> None:
    image = np.zeros((4, 4), np.uint8)
    with Client(guarded.grpc, credentials=Credentials(token=TOKENS["good"])) as client:
        assert client.classify(image, "letters", deadline=SECONDS).model == "letters"
        results = [result for _, result in client.classify_stream([image] * 3, "letters")]
        assert not any(isinstance(result, ServerError) for result in results)


def test_removed_caller_is_unknown_within_its_open_stream(guarded: Server, channel: grpc.Channel, file: Path) -> None:
    request = inference_pb2.ModelInferRequest(model_name="letters")
    go = threading.Event()

    def requests() -> Iterator[inference_pb2.ModelInferRequest]:
        yield request
        assert go.wait(SECONDS)
        yield request

    try:
        answers = stream(channel, "ModelStreamInfer")(requests(), metadata=header("good"), timeout=SECONDS)
        assert next(answers).infer_response.parameters["convoy_status"].string_param == "INVALID_ARGUMENT"
        after = len(guarded.log)
        put(file, file_of_callers().partition("\n")[2])
        called = next(each for each in methods() if each.name == "ListModels")
        wait_for(lambda: answer(channel, called, "good")[0] == "UNAUTHENTICATED")
        guarded.wait_for_log("callers changed and are in use", after=after)
        go.set()
        assert next(answers).infer_response.parameters["convoy_status"].string_param == "UNAUTHENTICATED"
        assert answer(channel, called, "all")[0] == "OK"
    finally:
        go.set()
        put(file, file_of_callers())
    wait_for(lambda: answer(channel, called, "good")[0] == "OK")
    wait_for(lambda: page(f"{guarded.http}/livez", "good")[0] == 200)


def test_file_that_cannot_be_used_leaves_the_callers_before(guarded: Server, channel: grpc.Channel, file: Path) -> None:
    after = len(guarded.log)
    called = next(each for each in methods() if each.name == "ListModels")
    try:
        put(file, "broken")
        guarded.wait_for_log("callers changed, but the previous ones stay in use", after=after)
        name = 'convoy_reload_failed{files="callers"} 1.0'
        wait_for(lambda: name in page(f"{guarded.metrics}/metrics", "metrics")[1])
        assert answer(channel, called, "good")[0] == "OK"
        assert answer(channel, called, "bad")[0] == "UNAUTHENTICATED"
    finally:
        put(file, file_of_callers())
    wait_for(lambda: name not in page(f"{guarded.metrics}/metrics", "metrics")[1])


def test_log_never_has_a_token(guarded: Server) -> None:
    text = json.dumps(guarded.log)
    assert not any(token in text for token in TOKENS.values())
    assert [record["message"] for record in guarded.log if record["level"] == "warning"][:1] == [
        "tokens of callers are not encrypted on their way: set tls.certificate and tls.key"
    ]


def test_public_doors_need_no_token_and_the_others_do(repository: Path, file: Path, transport: str) -> None:
    public = '["health", "reflection", "probes", "metrics"]'
    settings = [f"access.callers={file}", f"access.public={public}", "server.lame_duck_seconds=0"]
    with Server(repository, settings) as server, grpc.insecure_channel(server.grpc) as opened:
        for each in methods():
            expected = "OK" if each.path.startswith("/grpc.") else "UNAUTHENTICATED"
            assert answer(opened, each, "none")[0] == expected, each.path
        request = health_pb2.HealthCheckRequest(service="letters").SerializeToString()
        check = Method("/grpc.health.v1.Health/Check", "", False, request, None)
        assert answer(opened, check, "none")[0] == "OK"
        for url in (f"{server.http}/livez", f"{server.http}/readyz", f"{server.metrics}/metrics"):
            assert page(url, "none")[0] == page(url, "bad")[0] == 200


def test_certificate_stands_for_a_name(
    repository: Path, transport: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = Files(tmp_path_factory.mktemp("certificates"))
    authority: Authority = files.authority
    robot = authority.sign("robot", "URI:spiffe://example.org/robot")
    common, stranger = authority.sign("arm", "DNS:localhost"), authority.sign("stranger", "DNS:localhost")
    callers = tmp_path / "callers.toml"
    rows = [
        line("spiffe://example.org/robot", None, ["letters"], ["metrics"], None),
        line("arm", None, ["another"], [], None),
        line("by-token", TOKENS["good"], ["letters"], [], None),
    ]
    callers.write_text("\n".join(rows))
    server_files = [f"tls.certificate={files.server.certificate}", f"tls.key={files.server.key}"]
    settings = [*server_files, f"tls.client_ca={files.ca}", f"access.callers={callers}", "server.lame_duck_seconds=0"]
    with Server(repository, settings) as server:

        def code(pair: Any, token: str = "") -> str:
            credentials = Credentials(ca=files.ca, certificate=str(pair.certificate), key=str(pair.key), token=token)
            with Client(server.grpc, credentials=credentials) as client:
                try:
                    client.classify(np.zeros((4, 4), np.uint8), "letters", deadline=SECONDS)
                except ServerError as error:
                    return str(error.code.name)
                return "OK"

        assert [code(pair) for pair in (robot, common, stranger)] == ["OK", "PERMISSION_DENIED", "UNAUTHENTICATED"]
        assert code(stranger, TOKENS["good"]) == "OK"
        assert code(robot, "convoy_bad") == "UNAUTHENTICATED"

        def http(pair: Any) -> str:
            url = server.metrics.replace("http:", "https:") + "/metrics"
            words = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", files.ca]
            own = ["--cert", str(pair.certificate), "--key", str(pair.key)]
            return subprocess.run(["curl", *words, *own, url], capture_output=True, text=True, check=True).stdout

        assert [http(pair) for pair in (robot, common, stranger)] == ["200", "403", "401"]


def routes(server: Server) -> list[tuple[str, str]]:
    """Method and path of every route of the HTTP API that is not public, from its own document."""
    with urllib.request.urlopen(f"{server.http}/openapi.json", timeout=SECONDS) as answer:
        document = json.load(answer)
    public = ("/openapi.json", "/v2/openapi.json", "/", "/page/{number}")
    return [
        (verb.upper(), path.format(model="letters", version="1", number="1"))
        for path, operations in document["paths"].items()
        for verb in operations
        if path not in public and not path.startswith("/page/")
    ]


def test_no_route_of_the_http_api_is_open_to_a_stranger(guarded: Server) -> None:
    found = routes(guarded)
    assert len(found) > 25
    for verb, path in found:
        for kind in STRANGERS:
            assert page(f"{guarded.http}{path}", kind, verb)[0] == 401, (verb, path)


def test_control_routes_of_the_http_api_know_their_callers(guarded: Server) -> None:
    assert all(page(f"{guarded.http}{path}", "all", verb)[0] not in (401, 403) for verb, path in routes(guarded))
