"""The Open Inference Protocol over HTTP, on a real server: the answers of gRPC, and clients that others wrote."""

import asyncio
import gzip
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.service import networks
from tests.service.calls import infer_request, method, outputs
from tests.service.running import Server
from tests.service.test_vision import encoded

IMAGE = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [0] * 64}
X = np.array([[1, 2, 3, 4.5], [-1, 0, 1e-8, 3e38]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("http")
    for name in ("doubler", "compressor", "waves", "slow"):
        networks.save(getattr(networks, name)(), root, name)
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.segmenter(), root, "colours")
    with Server(root, ["server.lame_duck_seconds=0", "server.frontends=2"]) as server:
        yield server


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by their names in lower case, and body of an answer."""
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def tensor(values: np.ndarray, name: str = "x", datatype: str = "FP32", *, binary: bool = False) -> dict[str, Any]:
    described: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": datatype}
    if binary:
        return described | {"parameters": {"binary_data_size": values.nbytes}}
    return described | {"data": values.reshape(-1).tolist()}


def infer(
    server: Server, model: str, value: Any, rest: bytes = b"", **headers: str
) -> tuple[int, dict[str, Any], bytes]:
    head = json.dumps(value).encode()
    if rest:
        headers["Inference_Header_Content_Length"] = str(len(head))
    status, found, body = ask(f"{server.http}/v2/models/{model}/infer", head + rest, **headers)
    length = int(found.get("inference-header-content-length", len(body)))
    return status, json.loads(body[:length]), body[length:]


def over_grpc(server: Server, request: Any) -> dict[str, np.ndarray]:
    with grpc.insecure_channel(server.grpc) as channel:
        return outputs(method(channel, "ModelInfer")(request))


def refusal(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and reason; checks what every refusal has."""
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    value = json.loads(body)
    assert value["error"]
    assert "\n" not in value["error"]
    return status, value["reason"]


@pytest.mark.parametrize("binary", [False, True])
def test_answers_are_those_of_grpc_bit_for_bit(server: Server, binary: bool) -> None:
    wanted = over_grpc(server, infer_request("doubler", X / 4))
    value = {"inputs": [tensor(X / 4, binary=binary)], "parameters": {"binary_data_output": binary}}
    status, found, rest = infer(server, "doubler", value, (X / 4).tobytes() if binary else b"")
    assert status == 200
    assert (found["model_name"], found["model_version"], found["id"]) == ("doubler", "1", "")
    for output in found["outputs"]:
        if binary:
            size = output["parameters"]["binary_data_size"]
            values, rest = np.frombuffer(rest[:size], np.float32), rest[size:]
        else:
            values = np.array(output["data"], np.float32)
        assert values.tobytes() == wanted[output["name"]].tobytes()
        assert output["shape"] == list(wanted[output["name"]].shape)
    assert not rest


def test_answer_has_the_stage_timings_as_parameters(server: Server) -> None:
    _, found, _ = infer(server, "doubler", {"inputs": [tensor(X / 4)]})
    assert found["parameters"]["convoy_batch_size"] == 2
    assert 0 < found["parameters"]["convoy_run_seconds"] < found["parameters"]["convoy_total_seconds"]


@pytest.mark.parametrize("suffix", ["", "/versions/1"])
def test_questions_about_a_model_are_answered(server: Server, suffix: str) -> None:
    at = f"{server.http}/v2/models/doubler{suffix}"
    described = json.loads(ask(at)[2])
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert json.loads(ask(f"{at}/ready")[2]) == {"name": "doubler", "ready": True}
    assert json.loads(ask(f"{at}/config")[2])["max_batch_size"] == 32
    counted = json.loads(ask(f"{at}/stats")[2])["model_stats"][0]
    assert (counted["name"], type(counted["inference_count"])) == ("doubler", int)


def test_questions_about_the_server_are_answered(server: Server) -> None:
    assert json.loads(ask(f"{server.http}/v2/health/live")[2]) == {"live": True}
    assert json.loads(ask(f"{server.http}/v2/health/ready")[2]) == {"ready": True}
    assert "binary_tensor_data" in json.loads(ask(f"{server.http}/v2")[2])["extensions"]
    assert ask(f"{server.http}/v2/")[2] == ask(f"{server.http}/v2")[2]
    assert json.loads(ask(f"{server.http}/v2/models")[2])["models"] == sorted(
        ["doubler", "compressor", "waves", "slow", "letters", "colours"]
    )
    assert len(json.loads(ask(f"{server.http}/v2/models/stats")[2])["model_stats"]) == 6
    for body in (b"", b'{"ready": true}'):
        rows = json.loads(ask(f"{server.http}/v2/repository/index", body)[2])
        assert {row["state"] for row in rows} == {"READY"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2", "/openapi.json"])
def test_head_is_answered_without_a_body(server: Server, path: str) -> None:
    request = urllib.request.Request(server.http + path, method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.status, answer.read()) == (200, b"")
        assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("path", "body", "wanted"),
    [
        ("/nothing", None, (404, "UNKNOWN_PATH")),
        ("/v2/models/nosuch", None, (404, "UNKNOWN_MODEL")),
        ("/v2/models/nosuch/ready", None, (404, "UNKNOWN_MODEL")),
        ("/v2/models/doubler/versions/7", None, (404, "UNKNOWN_MODEL")),
        ("/v2/models/doubler/versions/x", None, (400, "BAD_REQUEST")),
        ("/v2/models/doubler/infer", b"{", (400, "BAD_REQUEST")),
        ("/v2/models/doubler/infer", json.dumps({"inputs": [tensor(X, "y")]}).encode(), (400, "BAD_TENSOR")),
        ("/v2/models/doubler/infer", json.dumps({"inputs": []}).encode(), (400, "BAD_TENSOR")),
        ("/v2/models", b"{}", (405, "BAD_REQUEST")),
        ("/v2/models/doubler/infer", None, (405, "BAD_REQUEST")),
        ("/v2/repository/models/doubler/load", b"", (501, "NOT_OFFERED")),
        ("/v2/repository/models/doubler/unload", b"", (501, "NOT_OFFERED")),
        ("/v2/models/..%2f..%2fetc/ready", None, (404, "UNKNOWN_PATH")),
    ],
)
def test_refusals_are_one_line_of_json_with_the_right_status(
    server: Server, path: str, body: bytes | None, wanted: tuple[int, str]
) -> None:
    assert refusal(ask(server.http + path, body)) == wanted


def test_numbers_that_json_has_not_are_told_apart(server: Server) -> None:
    huge = np.full((1, 4), 3e38, np.float32)
    status, found, _ = infer(server, "doubler", {"inputs": [tensor(huge)]})
    assert (status, "ask for binary data" in found["error"]) == (400, True)
    status, _, rest = infer(server, "doubler", {"inputs": [tensor(huge)], "parameters": {"binary_data_output": True}})
    assert (status, np.isinf(np.frombuffer(rest, np.float32)).all()) == (200, True)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_compressed_both_ways(server: Server, encoding: str, pack: Any) -> None:
    values = np.arange(4000, dtype=np.float32).reshape(1000, 4)[:32]
    head = json.dumps({"inputs": [tensor(values, binary=True)], "parameters": {"binary_data_output": True}}).encode()
    status, headers, body = ask(
        f"{server.http}/v2/models/doubler/infer",
        pack(head + values.tobytes()),
        Content_Encoding=encoding,
        Accept_Encoding=encoding,
        Inference_Header_Content_Length=str(len(head)),
    )
    assert (status, headers["content-encoding"]) == (200, encoding)
    plain = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
    assert int(headers["inference-header-content-length"]) < len(plain)
    # Whoever names several would get it compressed without having asked for that.
    _, headers, _ = ask(
        f"{server.http}/v2/models/doubler/infer",
        head + values.tobytes(),
        Accept_Encoding="gzip, deflate, br",
        Inference_Header_Content_Length=str(len(head)),
    )
    assert "content-encoding" not in headers


def test_bodies_of_a_wrong_encoding_are_refused(server: Server) -> None:
    url = f"{server.http}/v2/models/doubler/infer"
    status, headers, _ = ask(url, b"{}", Content_Encoding="br")
    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate")
    assert refusal(ask(url, b"{}", Content_Encoding="gzip")) == (400, "BAD_REQUEST")
    assert refusal(ask(url, gzip.compress(b"{}" * 500)[:-4], Content_Encoding="gzip")) == (400, "BAD_REQUEST")
    assert refusal(ask(url, gzip.compress(b"{}") + b"x", Content_Encoding="gzip")) == (400, "BAD_REQUEST")
    bomb = gzip.compress(bytes(65 << 20))
    assert len(bomb) < 100_000
    assert refusal(ask(url, bomb, Content_Encoding="gzip"))[0] == 413


def test_pictures_travel_as_bytes_over_both_protocols(server: Server) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    files = [encoded(image[..., 0]) for image in pixels]
    contents = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    wanted = over_grpc(server, infer_request("letters", pixels, "image", "UINT8"))["probabilities"]
    request = infer_request("letters", np.zeros(2, np.uint8), "image", "BYTES")
    request.raw_input_contents[0] = contents
    np.testing.assert_array_equal(over_grpc(server, request)["probabilities"], wanted)
    described = {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(contents)}}
    status, found, _ = infer(server, "letters", {"inputs": [described]}, contents)
    assert status == 200
    np.testing.assert_array_equal(np.array(found["outputs"][0]["data"], np.float32).reshape(2, -1), wanted)


def test_curl_asks_about_a_file_alone(server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    pixels = np.full((8, 8), 200, np.uint8)
    picture.write_bytes(encoded(pixels))
    command = ["curl", "-sS", "--data-binary", f"@{picture}", "-H", "Inference-Header-Content-Length: 0"]
    body = subprocess.run([*command, f"{server.http}/v2/models/letters/infer"], capture_output=True, check=True).stdout
    wanted = over_grpc(server, infer_request("letters", pixels.reshape(1, 8, 8, 1), "image", "UINT8"))
    assert body.endswith(wanted["probabilities"].tobytes())


def test_broken_picture_among_others_is_the_error_of_the_request(server: Server) -> None:
    contents = b"".join(len(file).to_bytes(4, "little") + file for file in (encoded(np.zeros((8, 8), np.uint8)), b"no"))
    described = {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(contents)}}
    status, found, _ = infer(server, "letters", {"inputs": [described]}, contents)
    assert (status, found["reason"]) == (400, "BAD_IMAGE")
    described["shape"] = [3]
    status, found, _ = infer(server, "letters", {"inputs": [described]}, contents)
    assert (status, found["reason"]) == (400, "BAD_TENSOR")


@pytest.mark.parametrize("headers", [{"X_Request_Timeout": "0.005"}, {"x_envoy_expected_rq_timeout_ms": "5"}])
def test_deadlines_in_headers_are_kept(server: Server, headers: dict[str, str]) -> None:
    with ThreadPoolExecutor(8) as threads:
        value = {"inputs": [IMAGE]}
        found = list(threads.map(lambda _: infer(server, "slow", value, **headers), range(24)))
    late = [(status, value["reason"]) for status, value, _ in found if status != 200]
    assert late
    assert set(late) <= {(504, "DEADLINE_PASSED"), (429, "PREDICTED_LATE")}


def test_deadline_in_the_request_is_kept(server: Server) -> None:
    value = {"inputs": [IMAGE], "parameters": {"timeout": 1}}
    assert infer(server, "slow", value)[0] in (429, 504)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "1e99"])
def test_deadline_that_is_none_is_refused(server: Server, value: str) -> None:
    assert refusal(ask(f"{server.http}/v2/models/doubler/infer", b"{}", X_Request_Timeout=value))[0] == 400


def test_request_id_comes_back(server: Server) -> None:
    assert ask(f"{server.http}/v2", X_Request_Id="abc-1")[1]["x-request-id"] == "abc-1"


def test_tritonclient_over_http(server: Server) -> None:
    with triton.InferenceServerClient(server.http.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("doubler")
        assert not client.is_model_ready("nosuch")
        assert client.get_model_metadata("doubler")["inputs"][0]["shape"] == [-1, 4]
        assert client.get_model_config("doubler")["max_batch_size"] == 32
        assert client.get_inference_statistics("doubler")["model_stats"][0]["name"] == "doubler"
        assert {row["name"] for row in client.get_model_repository_index()} >= {"doubler", "letters"}
        given = triton.InferInput("x", [2, 4], "FP32")
        for binary_in in (True, False):
            given.set_data_from_numpy(X / 4, binary_data=binary_in)
            for wanted in (
                None,
                [
                    triton.InferRequestedOutput("y", binary_data=True),
                    triton.InferRequestedOutput("total", binary_data=False),
                ],
            ):
                for packing in (None, "gzip", "deflate"):
                    found = client.infer(
                        "doubler",
                        [given],
                        outputs=wanted,
                        request_id="9",
                        request_compression_algorithm=packing,
                        response_compression_algorithm=packing,
                    )
                    np.testing.assert_array_equal(found.as_numpy("y"), X / 2)
                    assert found.get_response()["id"] == "9"
        picture = triton.InferInput("image", [1], "BYTES")
        picture.set_data_from_numpy(np.array([encoded(np.full((8, 8), 200, np.uint8))], object))
        ranked = client.infer(
            "letters", [picture], outputs=[triton.InferRequestedOutput("probabilities", class_count=3)]
        )
        assert [text.decode().split(":")[2] for text in ranked.as_numpy("probabilities")[0]] == ["a", "b", "c"]
        for model, name, shape, said in (
            ("nosuch", "x", [1, 4], "unknown"),
            ("doubler", "z", [1, 4], "'z' is unknown"),
            ("doubler", "x", [1, 5], "want [-1, 4]"),
        ):
            wrong = triton.InferInput(name, shape, "FP32")
            wrong.set_data_from_numpy(np.zeros(shape, np.float32))
            with pytest.raises(InferenceServerException) as refused:
                client.infer(model, [wrong])
            assert said in str(refused.value)


def test_tritonclient_for_asyncio_over_http(server: Server) -> None:
    async def talk() -> np.ndarray:
        async with triton_aio.InferenceServerClient(server.http.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            given = triton_aio.InferInput("x", [2, 4], "FP32")
            given.set_data_from_numpy(X / 4, binary_data=False)  # plain JSON, though it says octet-stream
            wanted = [triton_aio.InferRequestedOutput("y", binary_data=False)]
            answers = await asyncio.gather(*(client.infer("doubler", [given], outputs=wanted) for _ in range(20)))
            return np.stack([answer.as_numpy("y") for answer in answers])

    np.testing.assert_array_equal(asyncio.run(talk()), np.stack([X / 2] * 20))


def connected(server: Server) -> socket.socket:
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(server: Server, sent: bytes) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with connected(server) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = b"POST /v2/models/doubler/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", 400),
        (HEAD + b"content-length: -5\r\n\r\n", 400),
        (HEAD + b"content-length: 99999999999\r\n\r\n", 413),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nZ\r\n", 400),
        (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"bad header\r\n\r\n", 400),
        (HEAD + b"x: a\0b\r\n\r\n", 400),
        (HEAD + b"x: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (HEAD + b"content-length: 2\r\n" + 2 * b"inference-header-content-length: 2\r\n" + b"\r\n{}", 400),
    ],
)  # fmt: skip
def test_malformed_and_smuggled_requests_are_refused_in_json(server: Server, sent: bytes, status: int) -> None:
    answer = raw(server, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert answer.count(b"HTTP/1.1") == 1
    assert json.loads(body)["error"]
    for word in (b"uvicorn", b"python", b"Traceback", b"starlette", b"convoy/"):
        assert word not in answer.lower()


def test_body_that_is_cut_off_reaches_no_model(server: Server) -> None:
    body = json.dumps({"inputs": [tensor(np.ones((1, 4), np.float32))]}).encode()  # all but spaces that are to follow
    for missing, runs in ((0, 1), (9, 0)):
        before = server.total("convoy_batch_size_count", model="doubler")
        with connected(server) as connection:
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body) + missing, body))
            if missing:
                connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == (b"" if missing else b"H")
        assert server.wait_for_total("convoy_batch_size_count", before + runs, model="doubler") == before + runs


def test_client_that_leaves_cancels_its_request(server: Server) -> None:
    before = server.total("convoy_cancelled_total")
    body = json.dumps({"inputs": [IMAGE]}).encode()
    sent = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    for _ in range(20):
        with connected(server) as connection:
            connection.sendall(sent)
    # Before the first has been read, none is in flight either.
    deadline = time.monotonic() + 60
    while server.total("convoy_cancelled_total") == before or server.total("convoy_requests_in_flight"):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
