"""Pictures over HTTP on a real server, asked by curl: the answers of gRPC, and bodies that mean harm."""

import gzip
import io
import json
import socket
import struct
import subprocess
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from convoy.service.client.client import Client
from convoy.service.images.overlay import overlay
from tests.service import networks
from tests.service.calls import infer_request, method, outputs
from tests.service.running import Server

RANDOM = np.random.default_rng(5)
GREY = RANDOM.integers(0, 256, (8, 8), np.uint8)
SCENE = RANDOM.integers(0, 256, (30, 21, 3), np.uint8)
MOST_BYTES = 1 << 20


def file_of(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


FILES = {"grey.png": file_of(GREY), "scene.jpg": file_of(SCENE, "JPEG"), "noise.bin": b"not an image", "empty.png": b""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("pictures")
    networks.save(networks.doubler(), root, "doubler")
    networks.save(networks.doubler(batched=False), root, "triple")
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.segmenter(), root, "colours")
    networks.save(networks.segmenter(confidence=False), root, "plain")
    limits = [f"limits.max_message_bytes={MOST_BYTES}", "limits.max_images=5", "limits.max_pixels=1000000"]
    with Server(root, ["server.lame_duck_seconds=0", *limits]) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


Curl = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def curl(server: Server, folder: Path) -> Curl:
    """`curl ARGUMENTS http://SERVER/v1/models/PATH` in the folder of files: status, headers and body."""

    def run(path: str, *arguments: str, send: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        command = ["curl", "-sS", "-D", "headers", *arguments, f"{server.http}/v1/models/{path}"]
        done = subprocess.run(command, cwd=folder, input=send, capture_output=True, timeout=60, check=True)
        heads = (folder / "headers").read_text().strip().split("\n\n")
        first, *lines = heads[-1].splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, done.stdout

    return run


def value(answer: tuple[int, dict[str, str], bytes]) -> Any:
    status, headers, body = answer
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


def refusal(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str, str]:
    """Status, reason and message of a refusal."""
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    said = json.loads(body)
    assert "\n" not in said["error"]
    return status, said["reason"], said["error"]


def opened(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def labels(result: dict[str, Any]) -> list[tuple[int, str, float]]:
    return [(each["index"], each["name"], float(np.float32(each["probability"]))) for each in result["labels"]]


def expected_labels(answer: Any) -> list[tuple[int, str, float]]:
    return [(label.index, label.name, label.probability) for label in answer.labels]


def b64(name: str) -> dict[str, str]:
    return {"b64": b64encode(FILES[name]).decode()}


def as_json(body: Any) -> bytes:
    return json.dumps(body).encode()


IN_FORMS = {
    "file": ["--data-binary", "@{}"],
    "file with its type": ["--data-binary", "@{}", "-H", "content-type: image/jpeg"],
    "chunked": ["-T", "{}", "-X", "POST", "-H", "transfer-encoding: chunked"],
    "form": ["-F", "image=@{}"],
    "form of another name": ["-F", "whatever=@{};type=image/png"],
}


@pytest.mark.parametrize("form", IN_FORMS)
@pytest.mark.parametrize("name", ["grey.png", "scene.jpg"])
def test_labels_are_those_of_grpc_in_every_form(curl, client, form, name):
    answer = value(curl("letters:classify?top_k=10", *(part.format(name) for part in IN_FORMS[form])))
    assert (answer["model"], answer["version"]) == ("letters", 1)
    (result,) = answer["results"]
    assert labels(result) == expected_labels(client.classify(FILES[name], "letters", top_k=10))
    assert result["timings"]["batch_size"] == 1
    assert result["timings"]["total_seconds"] > 0


def test_labels_of_json_are_those_of_grpc(curl, client):
    expected = expected_labels(client.classify(FILES["grey.png"], "letters"))
    for body in ({"image_bytes": b64("grey.png")}, {"images": [b64("grey.png")]}):
        (result,) = value(curl("letters/versions/1:classify", "--json", "@-", send=as_json(body)))["results"]
        assert labels(result) == expected
        assert len(result["labels"]) == 5


@pytest.mark.parametrize("form", ["json", "form"])
def test_each_of_several_images_has_its_own_result(curl, client, form):
    names = ["grey.png", "noise.bin", "scene.jpg", "empty.png"]
    if form == "json":
        answer = curl(
            "letters:classify?top_k=2", "--json", "@-", send=as_json({"images": [b64(name) for name in names]})
        )
    else:
        answer = curl("letters:classify?top_k=2", *(part for name in names for part in ("-F", f"images=@{name}")))
    results = value(answer)["results"]
    for name, result in zip(names, results, strict=True):
        if name in ("grey.png", "scene.jpg"):
            assert labels(result) == expected_labels(client.classify(FILES[name], "letters", top_k=2))
        else:
            assert result["reason"] == "BAD_IMAGE"
            assert result["error"].startswith("image ")


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in ("noise.bin", "empty.png") for form in ("file", "form")]
)
def test_a_single_image_that_is_none_fails_the_request(curl, name, form):
    assert refusal(curl("letters:classify", *(part.format(name) for part in IN_FORMS[form])))[:2] == (400, "BAD_IMAGE")


def test_a_class_map_is_that_of_grpc(curl, client):
    expected = client.segment(FILES["scene.jpg"], "colours", with_confidence=True)
    (result,) = value(curl("colours:segment?confidence=1", "--data-binary", "@scene.jpg"))["results"]
    found = np.full(expected.mask.shape, 255, np.uint8)
    for run in result["run_lengths"]:
        found[coco.decode({"size": found.shape, "counts": run["counts"].encode()}) == 1] = run["class_index"]
    assert np.array_equal(found, expected.mask)
    assert (result["height_px"], result["width_px"]) == found.shape == SCENE.shape[:2]
    assert np.array_equal(opened(b64decode(result["confidence_png"]["b64"])), expected.confidence)
    counts = [(each["class_index"], each["name"], each["pixels"]) for each in result["class_pixels"]]
    assert counts == [(each.index, each.name, each.pixels) for each in expected.class_pixels]


@pytest.mark.parametrize("how", [("?as=png",), ("", "-H", "Accept: image/png")])
def test_a_mask_file_is_that_of_grpc(curl, client, how):
    query, *arguments = how
    status, headers, body = curl(f"colours:segment{query}", *arguments, "--data-binary", "@scene.jpg")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert (headers["convoy-model"], headers["convoy-version"]) == ("colours", "1")
    assert np.array_equal(opened(body), client.segment(FILES["scene.jpg"], "colours", format="png").mask)


@pytest.mark.parametrize("model", ["colours", "plain"])
def test_an_overlay_is_the_picture_under_its_mask(curl, client, model):
    status, headers, body = curl(f"{model}:segment?as=overlay", "--data-binary", "@grey.png")
    assert (status, headers["content-type"]) == (200, "image/png")
    mask = client.segment(FILES["grey.png"], model).mask
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    assert np.array_equal(opened(body), overlay(GREY[..., None].repeat(3, 2), mask, colours))


def test_predictions_of_tensors_are_those_of_grpc(curl, server):
    rows = RANDOM.random((7, 4)).astype(np.float32)
    answer = value(curl("doubler:predict", "-d", "@-", send=as_json({"instances": rows[:5].tolist()})))
    with grpc.insecure_channel(server.grpc) as channel:
        expected = outputs(method(channel, "ModelInfer")(infer_request("doubler", rows[:5])))
    for name, values in expected.items():
        assert np.array_equal(np.array([each[name] for each in answer["predictions"]], np.float32), values)
    named = value(curl("doubler:predict", "-d", "@-", send=as_json({"instances": [{"x": rows[0].tolist()}]})))
    assert named["predictions"] == answer["predictions"][:1]


def test_predictions_of_a_model_without_batches_are_those_of_grpc(curl, server):
    instances = RANDOM.random((3, 3, 4)).astype(np.float32)
    answer = value(curl("triple:predict", "-d", "@-", send=as_json({"instances": instances.tolist()})))
    with grpc.insecure_channel(server.grpc) as channel:
        infer = method(channel, "ModelInfer")
        for instance, prediction in zip(instances, answer["predictions"], strict=True):
            for name, values in outputs(infer(infer_request("triple", instance))).items():
                assert np.array_equal(np.array(prediction[name], np.float32), values)


def test_predictions_of_files_are_those_of_grpc(curl, client):
    names = ["grey.png", "scene.jpg"]
    body = as_json({"instances": [b64(names[0]), {"image_bytes": b64(names[1])}]})
    for name, prediction in zip(
        names, value(curl("letters:predict", "-d", "@-", send=body))["predictions"], strict=True
    ):
        assert labels(prediction) == expected_labels(client.classify(FILES[name], "letters"))
    for name, prediction in zip(
        names, value(curl("colours:predict", "-d", "@-", send=body))["predictions"], strict=True
    ):
        expected = client.segment(FILES[name], "colours")
        assert np.array_equal(opened(b64decode(prediction["mask_png"]["b64"])), expected.mask)
        assert prediction["class_pixels"] == {each.name: each.pixels for each in expected.class_pixels}


def test_one_failing_instance_fails_the_request(curl):
    body = as_json({"instances": [b64("grey.png"), b64("noise.bin")]})
    status, reason, message = refusal(curl("letters:predict", "-d", "@-", send=body))
    assert (status, reason) == (400, "BAD_IMAGE")
    assert message.startswith("instances[1]: image starts with the bytes")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("letters:classify?topk=3", 400, "BAD_REQUEST"),
        ("letters:classify?top_k=x", 400, "BAD_REQUEST"),
        ("nothing:classify", 404, "UNKNOWN_MODEL"),
        ("letters/versions/9:classify", 404, "UNKNOWN_MODEL"),
        ("letters/versions/0:classify", 400, "BAD_REQUEST"),
        ("letters:segment", 400, "BAD_REQUEST"),
        ("doubler:classify", 400, "BAD_REQUEST"),
        ("colours:classify", 400, "BAD_REQUEST"),
        ("plain:segment?confidence=1", 400, "BAD_REQUEST"),
        ("colours:segment?as=gif", 400, "BAD_REQUEST"),
        ("letters:explain", 501, "NOT_OFFERED"),
        ("letters:regress", 404, "UNKNOWN_PATH"),
        ("nothing:predict", 404, "UNKNOWN_MODEL"),
        ("letters:predict", 400, "BAD_REQUEST"),
    ],
)
def test_what_is_not_there_is_refused(curl, path, status, reason):
    assert refusal(curl(path, "--data-binary", "@grey.png"))[:2] == (status, reason)


def test_a_deadline_is_that_of_its_header(curl):
    arguments = ("--data-binary", "@grey.png", "-H")
    assert refusal(curl("letters:classify", *arguments, "X-Request-Timeout: 0.000001"))[:2] == (504, "DEADLINE_PASSED")
    assert refusal(curl("letters:classify", *arguments, "X-Request-Timeout: soon"))[:2] == (400, "BAD_REQUEST")
    assert value(curl("letters:classify", *arguments, "X-Request-Timeout: 30"))


def gzipped(plain: bytes) -> bytes:
    return gzip.compress(plain, 1)


def test_a_compressed_body_is_inflated(curl, client):
    body = gzipped(as_json({"images": [b64("grey.png")]}))
    arguments = ("--data-binary", "@-", "-H", "content-type: application/json", "-H", "content-encoding: gzip")
    (result,) = value(curl("letters:classify", *arguments, send=body))["results"]
    assert labels(result) == expected_labels(client.classify(FILES["grey.png"], "letters"))


JSON = ("-H", "content-type: application/json", "--data-binary", "@-")
FORM = ("-H", "content-type: multipart/form-data; boundary=XX", "--data-binary", "@-")
PART = b'--XX\r\ncontent-disposition: form-data; name="images"; filename="%b"\r\n\r\n%b\r\n'
NOBODY = PART % (b"a", b"x")


def huge_png() -> bytes:
    """A file that says it is 2^31 - 1 pixels wide and high."""
    header = struct.pack(">II", 2**31 - 1, 2**31 - 1) + bytes([8, 2, 0, 0, 0])
    chunk = struct.pack(">I", 13) + b"IHDR" + header + zlib.crc32(b"IHDR" + header).to_bytes(4)
    return b"\x89PNG\r\n\x1a\n" + chunk


HOSTILE = {
    "nested lists": (JSON, b'{"images": ' + b"[" * 100_000, 400),
    "nested objects": (JSON, b'{"images": ' + b'{"b64":' * 100_000, 400),
    "unknown nested member": (JSON, b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "many images": (JSON, b'{"images": [' + b'{"b64":""},' * 80_000 + b'{"b64":""}]}', 400),
    "bad base64": (JSON, b'{"images": [{"b64": "' + b"@" * 500_000 + b'"}]}', 400),
    "no json": (JSON, b"\x00" * 500_000, 400),
    "long string": (JSON, b'"' + b"a" * 900_000, 400),
    "10^4 parts": (FORM, NOBODY * 10_000 + b"--XX--\r\n", 400),
    "cut form": (FORM, NOBODY + NOBODY[:-4], 400),
    "form without end": (FORM, NOBODY, 400),
    "empty form": (FORM, b"--XX--\r\n", 400),
    "no form": (FORM, b"\r\n" * 400_000, 400),
    "like boundaries": (FORM, b"--XX\r\n\r\n" + b"\r\n--XXX" * 100_000, 400),
    "long header": (FORM, b"--XX\r\ncontent-disposition: " + b"a" * 900_000, 400),
    "header of lines": (FORM, PART % (b'a"\r\nx-evil: 1\r\n\tfolded', b"x") + b"--XX--", 400),
    "encoded lines in a name": (FORM, PART % (b"a%0d%0ax-evil: 1", b"x") + b"--XX--", 400),
    "no boundary": (("-H", "content-type: multipart/form-data", "--data-binary", "@-"), NOBODY, 400),
    "huge picture": (("--data-binary", "@-"), huge_png(), 400),
    "huge picture in a form": (FORM, PART % (b"a", huge_png()) + b"--XX--\r\n", 400),
    "zero bytes": (("--data-binary", ""), b"", 400),
    "zero bytes of a form": (FORM, b"", 400),
    "zero bytes of json": (JSON, b"", 400),
    "gzip bomb": ((*JSON, "-H", "content-encoding: gzip"), gzipped(b" " * (64 << 20)), 413),
    "gzip that is none": ((*JSON, "-H", "content-encoding: gzip"), b"plain", 400),
    "brotli": ((*JSON, "-H", "content-encoding: br"), b"plain", 415),
    "too long": (("--data-binary", "@-"), bytes(MOST_BYTES + 1), 413),
    "too long in chunks": (("-T", "-", "-X", "POST"), bytes(MOST_BYTES + 1), 413),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_that_means_harm_is_refused_alone(curl, name):
    arguments, body, status = HOSTILE[name]
    found, _, message = refusal(curl("letters:classify", *arguments, send=body))
    assert (found, len(message) < 400) == (status, True)
    assert value(curl("letters:classify", "--data-binary", "@grey.png"))


PREDICTED = {
    "nested": (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "nested objects": (b'{"instances": [' + b'{"x":' * 100_000, 400),
    "many scalars": (b'{"instances": [' + b"0," * 400_000 + b"0]}", 400),
    "many lists": (b'{"instances": [' + b"[0]," * 200_000 + b"[0]]}", 400),
    "empty lists": (b'{"instances": [' + b"[]," * 300_000 + b"[]]}", 400),
    "one long row": (b'{"instances": [[' + b"0," * 400_000 + b"0]]}", 400),
    "long number": (b'{"instances": [[' + b"9" * 500_000 + b"]]}", 400),
    "members": (b'{"instances": [{' + b",".join(b'"%d":0' % number for number in range(80_000)) + b"}]}", 400),
    "strings": (b'{"instances": [' + b'"",' * 300_000 + b'""]}', 400),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_instances_that_mean_harm_are_refused_alone(curl, name):
    body, status = PREDICTED[name]
    found, _, message = refusal(curl("doubler:predict", "-d", "@-", send=body))
    assert (found, len(message) < 400) == (status, True)
    good = as_json({"instances": [[1, 2, 3, 4]]})
    assert value(curl("doubler:predict", "-d", "@-", send=good))["predictions"][0]["y"] == [2, 4, 6, 8]


def test_a_body_that_is_cut_off_leaves_the_server_alone(server, curl):
    host, port = server.http.removeprefix("http://").split(":")
    head = f"POST /v1/models/letters:classify HTTP/1.1\r\nhost: {host}\r\n{FORM[1]}\r\ncontent-length: 5000\r\n\r\n"
    for rest in (b"", NOBODY, NOBODY[:-4]):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(head.encode() + rest)
    assert value(curl("letters:classify", "--data-binary", "@grey.png"))


def test_many_callers_at_a_time_have_their_own_answers(server, folder, client):
    expected = {name: expected_labels(client.classify(FILES[name], "letters")) for name in ("grey.png", "scene.jpg")}
    command = ["curl", "-sS", "--data-binary"]

    def ask(number: int) -> bool:
        name = ("grey.png", "scene.jpg")[number % 2]
        url = f"{server.http}/v1/models/letters:classify"
        done = subprocess.run([*command, f"@{folder / name}", url], capture_output=True, timeout=60, check=True)
        return labels(json.loads(done.stdout)["results"][0]) == expected[name]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
