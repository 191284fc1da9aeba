"""The handlers of images over HTTP, on methods of gRPC whose answers are known."""

import io
import json
from base64 import b64decode, b64encode

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from convoy.service.config import LimitsConfig
from convoy.service.errors import BadImage, BadRequest, ConvoyError, QueueFull
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.postprocess import segmentation
from convoy.service.frontend.rest.pictures import Pictures
from convoy.service.images.overlay import overlay
from convoy.service.metadata import Document, InputSpec
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import Placement
from tests.service.frontend.rest.asking import THREADS, Methods, ask, value

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 201)]
TIMINGS = pb.Timings(receive_seconds=0.25, total_seconds=0.5, batch_size=3)


class NoMarks:
    def mark(self, thread: int, digest: bytes) -> None:
        pass


def pictures(**limits: int) -> Pictures:
    return Pictures(LimitsConfig(**limits), THREADS, Decoder(NoMarks(), lambda digest, until: None))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


SCENE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
MASK = np.random.default_rng(1).integers(0, 2, (12, 20), np.uint8) * 2
CONFIDENCE = np.random.default_rng(2).integers(0, 256, (12, 20), np.uint8)
FILE = png(SCENE)


def classified(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """The first byte of a file is its class; an empty file is an error."""
    response = pb.ClassifyResponse(model=request.model, version=request.version or 7)
    for image in request.images:
        if image.encoded:
            label = pb.Label(index=image.encoded[0], name=f"class {image.encoded[0]}", probability=0.1)
            response.results.add(classification=pb.Classification(labels=[label, label]), timings=TIMINGS)
        else:
            response.results.add(error=pb.ImageError(code=3, reason="BAD_IMAGE", message="image is 0 bytes"))
    return response


def segmented(request: pb.SegmentRequest) -> pb.SegmentResponse:
    """The same mask for each file."""
    document = Document(
        task="segmentation",
        labels=["red", "green", "blue"],
        palette=PALETTE,
        input=InputSpec(colour="RGB", fit="pad"),
    )
    confidence = CONFIDENCE if request.with_confidence else None
    answer = segmentation(MASK, confidence, document, Placement(12, 20, 0, 0, 12, 20), request.format)
    result = pb.SegmentResult(segmentation=answer, timings=TIMINGS)
    return pb.SegmentResponse(model=request.model, version=2, results=[result] * len(request.images))


METHODS = {"Classify": classified, "Segment": segmented}


def classify(
    body: bytes = b"\x05", query: str = "", version: str = "", limits: dict[str, int] | None = None, **headers
):
    methods = Methods(**METHODS)
    response = ask(pictures(**(limits or {})).classify, methods, body, query, "letters", version, **headers)
    return methods.asked[0], value(response)


def segment(query: str = "", body: bytes = FILE, **headers: str):
    methods = Methods(**METHODS)
    return methods, ask(pictures().segment, methods, body, query, "colours", **headers)


def refused(handler, body: bytes = b"\x05", query: str = "", version: str = "", **headers: str) -> str:
    methods = Methods(**METHODS)
    with pytest.raises(BadRequest) as error:
        ask(handler, methods, body, query, "letters", version, **headers)
    assert not methods.asked
    return error.value.message


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_one_file(kind):
    request, answer = classify(b"\x05 any bytes", **({"content_type": kind} if kind else {}))
    assert request == pb.ClassifyRequest(
        model="letters", images=[pb.Image(encoded=b"\x05 any bytes")], priority=pb.PRIORITY_NORMAL
    )
    label = {"index": 5, "name": "class 5", "probability": 0.1}
    (result,) = answer["results"]
    assert (answer["model"], answer["version"], result["labels"]) == ("letters", 7, [label, label])
    timings = result["timings"]
    assert (timings["receive_seconds"], timings["queue_seconds"], timings["batch_size"]) == (0.25, 0, 3)
    assert len(timings) == 10


def test_parameters_reach_the_request():
    request, answer = classify(query="top_k=3&priority=low", version="4")
    assert (request.top_k, request.priority, request.version, answer["version"]) == (3, pb.PRIORITY_LOW, 4, 4)


def test_json_has_one_file_or_many():
    one = {"image_bytes": {"b64": b64encode(b"\x01one").decode()}}
    many = {"images": [{"b64": b64encode(data).decode()} for data in (b"\x01one", b"", b"\x02two")]}
    for body, files in ((one, [b"\x01one"]), (many, [b"\x01one", b"", b"\x02two"])):
        request, answer = classify(json.dumps(body).encode(), content_type="application/json; charset=utf-8")
        assert [image.encoded for image in request.images] == files
        assert [result.get("reason") for result in answer["results"]] == ["BAD_IMAGE" if not f else None for f in files]
    assert answer["results"][1] == {"error": "image is 0 bytes", "reason": "BAD_IMAGE"}
    assert [result["labels"][0]["index"] for result in (answer["results"][0], answer["results"][2])] == [1, 2]


def test_a_form_has_many_files():
    head = '--XX\r\nContent-Disposition: form-data; name="x"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    body = "".join(head.format(name) + data + "\r\n" for name, data in (("a", "\x01a"), ("b", "\x02b"))) + "--XX--\r\n"
    request, _ = classify(body.encode(), content_type="Multipart/Form-Data; Boundary=XX")
    assert [image.encoded for image in request.images] == [b"\x01a", b"\x02b"]


def test_large_bodies_and_answers_are_read_and_written_in_threads():
    files = [bytes([number]) * 9000 for number in range(200)]
    body = json.dumps({"images": [{"b64": b64encode(data).decode()} for data in files]}).encode()
    request, answer = classify(body, content_type="application/json")
    assert [image.encoded for image in request.images] == files
    assert [result["labels"][0]["index"] for result in answer["results"]] == list(range(200))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("topk=3", "query parameter 'topk' is unknown, want one of top_k, priority"),
        ("top_k=3&as=png", "query parameter 'as' is unknown, want one of top_k, priority"),
        ("top_k=1&top_k=2", "query parameter 'top_k' occurs twice"),
        ("top_k=-1", "query parameter 'top_k' is '-1', want a whole number from 0 to 4294967295"),
        ("top_k=4294967296", "query parameter 'top_k' is '4294967296', want a whole number from 0"),
        ("top_k=%D9%A3", "query parameter 'top_k' is '٣', want a whole number from 0"),
        ("top_k=" + "9" * 5000, "query parameter 'top_k' is '99999"),
        ("top_k=", "query parameter 'top_k' is '', want a whole number from 0"),
        ("top_k=3%0d%0aset-cookie:%20a", "query parameter 'top_k' is '3\\r\\nset-cookie: a', want a whole number"),
        ("priority=high", "query parameter 'priority' is 'high', want one of normal, low"),
        ("=", "query parameter '' is unknown"),
    ],
)
def test_a_wrong_parameter_is_refused(query, message):
    assert refused(pictures().classify, query=query).startswith(message)


@pytest.mark.parametrize("version", ["0", "-1", "one", "9" * 19, "٣"])
def test_a_wrong_version_is_refused(version):
    assert refused(pictures().classify, version=version).endswith("want a whole number from 1")


def test_json_without_its_type_is_named():
    assert "content-type: application/json" in refused(pictures().classify, b' {"images": []}')


def test_more_images_than_the_limit_are_refused_before_they_are_decoded():
    body = json.dumps({"images": [{"b64": "not base64"}] * 3}).encode()
    message = refused(pictures(max_images=2).classify, body, content_type="application/json")
    assert message == "request has more than 2 images, want 1 to 2"


def test_the_refusal_of_a_method_is_that_of_the_request():
    def full(request: pb.ClassifyRequest) -> ConvoyError:
        return QueueFull("full", retry_after=0.5)

    with pytest.raises(QueueFull):
        ask(pictures().classify, Methods(Classify=full), b"\x05")


@pytest.mark.parametrize("query", ["", "as=json", "confidence=1", "confidence=true&priority=low"])
def test_a_class_map_is_run_lengths_in_json(query):
    methods, response = segment(query)
    confident = "confidence" in query
    assert methods.asked[0] == pb.SegmentRequest(
        model="colours",
        images=[pb.Image(encoded=FILE)],
        format=pb.MASK_FORMAT_RLE,
        with_confidence=confident,
        priority=pb.PRIORITY_LOW if "low" in query else pb.PRIORITY_NORMAL,
    )
    answer = value(response)
    (result,) = answer["results"]
    assert (answer["model"], answer["version"]) == ("colours", 2)
    assert (result["height_px"], result["width_px"]) == MASK.shape
    assert [(each["name"], each["pixels"]) for each in result["class_pixels"]] == [
        ("red", int((MASK == 0).sum())),
        ("green", 0),
        ("blue", int((MASK == 2).sum())),
    ]
    found = np.full(MASK.shape, 255, np.uint8)
    for run in result["run_lengths"]:
        found[coco.decode({"size": MASK.shape, "counts": run["counts"].encode()}) == 1] = run["class_index"]
    assert np.array_equal(found, MASK)
    assert ("confidence_png" in result) == confident
    if confident:
        assert np.array_equal(opened(b64decode(result["confidence_png"]["b64"])), CONFIDENCE)
    assert result["timings"]["batch_size"] == 3


@pytest.mark.parametrize(
    "how", [{"query": "as=png"}, {"accept": "image/png"}, {"accept": "text/html, IMAGE/PNG;q=0.9"}]
)
def test_a_class_map_is_a_palette_png_file_for_who_asks_for_it(how):
    methods, response = segment(**how)
    assert methods.asked[0].format == pb.MASK_FORMAT_PNG
    assert response.headers["content-type"] == "image/png"
    assert (response.headers["convoy-model"], response.headers["convoy-version"]) == ("colours", "2")
    assert np.array_equal(opened(response.body), MASK)


@pytest.mark.parametrize(
    "how", [{"query": "as=json", "accept": "image/png"}, {"accept": "*/*"}, {"accept": "image/png, application/json"}]
)
def test_json_is_what_others_get(how):
    _, response = segment(**how)
    assert value(response)["results"]


def test_an_overlay_is_the_picture_under_the_colours_of_its_mask():
    _, response = segment("as=overlay")
    expected = overlay(SCENE, MASK, np.array(PALETTE, np.uint8))
    assert np.array_equal(opened(response.body), expected)
    assert response.headers["content-type"] == "image/png"


def test_an_overlay_of_a_turned_jpeg_lies_as_its_mask_does():
    image = PIL.Image.fromarray(np.zeros((20, 12, 3), np.uint8))  # after its quarter turn as high as the mask
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    _, response = segment("as=overlay", file.getvalue())
    expected = overlay(np.zeros((12, 20, 3), np.uint8), MASK, np.array(PALETTE, np.uint8))
    assert np.array_equal(opened(response.body), expected)


@pytest.mark.parametrize("form", ["png", "overlay"])
def test_a_picture_is_of_one_image(form):
    body = json.dumps({"images": [{"b64": ""}] * 2}).encode()
    message = refused(pictures().segment, body, f"as={form}", content_type="application/json")
    assert message == f"request has 2 images, want 1 for as={form}"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("as=jpeg", "query parameter 'as' is 'jpeg', want one of json, png, overlay"),
        ("confidence=yes", "query parameter 'confidence' is 'yes', want one of 0, 1, false, true"),
        ("confidence=1&as=png", "query parameter 'confidence' is 1, but as=png is the mask alone: want as=json"),
        ("top_k=1", "query parameter 'top_k' is unknown, want one of confidence, priority, as"),
    ],
)
def test_a_wrong_parameter_of_a_class_map_is_refused(query, message):
    assert refused(pictures().segment, FILE, query) == message


def test_a_picture_over_the_limit_is_not_decoded_for_its_overlay():
    # The method, which refuses it first in a server, has other limits here.
    with pytest.raises(BadImage):
        ask(pictures(max_pixels=100).segment, Methods(**METHODS), FILE, "as=overlay")
