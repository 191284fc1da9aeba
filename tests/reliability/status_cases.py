"""Requests and the status that each must have: the table of R15, by what is wrong with them."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from convoy.service.pb import inference_pb2 as oip
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability.samples import pictures

OK = ("OK", "")
BAD_REQUEST = ("INVALID_ARGUMENT", "BAD_REQUEST")
BAD_IMAGE = ("INVALID_ARGUMENT", "BAD_IMAGE")
BAD_TENSOR = ("INVALID_ARGUMENT", "BAD_TENSOR")
UNKNOWN_MODEL = ("NOT_FOUND", "UNKNOWN_MODEL")
UNKNOWN_SERVICE = ("NOT_FOUND", "UNKNOWN_SERVICE")

VISION, OIP, HEALTH = "/convoy.v1.Vision/", "/inference.GRPCInferenceService/", "/grpc.health.v1.Health/"
SIDES = (-1, 0, 1, 2**31 - 1, 2**31 + 1, 2**32, 2**63 - 1)  # of S6, hazards of sizes that wrap
JPEG, PNG = pictures()[0], pictures()[5]

# Names that no model has: unknown, never dangerous.
NAMES = (
    "nobody",
    "..",
    "../letters",
    "/etc/passwd",
    "LETTERS",
    "letters/9",
    "letters ",
    "x" * 65,
    "x" * 5000,
    "\0",
    "a\nb",
    "\u202e",
    "%2e%2e",
    "$(id)",
    "*",
)
# Contents that are no picture.
NO_PICTURES = {
    "nothing": b"",
    "text": b"hello, world",
    "zeros": bytes(100),
    "GIF": b"GIF89a" + bytes(20),
    "WebP": b"RIFF\0\0\0\0WEBPVP8 ",
    "BMP": b"BM" + bytes(60),
    "TIFF": b"II*\0" + bytes(30),
    "PDF": b"%PDF-1.7",
    "SVG": b"<svg xmlns=''/>",
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(16),
    "JPEG, its head": JPEG[:3],
    "JPEG, cut": JPEG[: len(JPEG) // 2],
    "JPEG without its end": JPEG[:-2],
    "JPEG without a frame": b"\xff\xd8\xff\xd9",
    "PNG, its head": PNG[:8],
    "PNG, cut": PNG[: len(PNG) // 2],
    "PNG of another size": PNG[:16] + b"\xff\xff\xff\xff" + PNG[20:],
    "PNG, a wrong checksum": PNG[:29] + bytes(4) + PNG[33:],
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\3\4" + bytes(30),
}
# Raw pixels: height, width, channels, bytes.
RAW = (
    *(
        (side, other, 1, 64)
        for side in (0, 9, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
        for other in (0, 1, 8, 65_536, 2**32 - 1)
    ),
    *((8, 8, channels, 64) for channels in (0, 2, 3, 4, 5, 2**31, 2**32 - 1)),
    *((8, 8, 1, nbytes) for nbytes in (0, 1, 63, 65, 4096)),
)
VERSIONS = ("0", "-1", "x", "1.0", " 1", "1 ", "01x", "\u0661", "9" * 19, "9" * 400, "1e3", "../1")


class Case(NamedTuple):
    """A request and how it must end: the name of the status, and the reason."""

    name: str
    path: str
    request: Any
    wanted: tuple[str, str]


def cases() -> Iterator[Case]:
    """The table; the number of each makes its name unique."""
    parts = (_good(), _models(), _images(), _fields(), _tensors(), _parameters(), _others())
    for number, case in enumerate(itertools.chain(*parts)):
        yield case._replace(name=f"{number}: {case.name}")


def _good() -> Iterator[Case]:
    """The control: each kind of request that others spoil is one that is served."""
    yield Case("good raw image", VISION + "Classify", classify(), OK)
    yield Case("good file", VISION + "Classify", classify(image=pb.Image(encoded=PNG)), OK)
    yield Case("good mask", VISION + "Segment", segment(), OK)
    yield Case("good tensor", OIP + "ModelInfer", infer(), OK)
    yield Case("good name", OIP + "ModelMetadata", oip.ModelMetadataRequest(name="doubler", version="1"), OK)


def _models() -> Iterator[Case]:
    for name in NAMES:
        yield Case(f"Classify by {name!r:.30}", VISION + "Classify", classify(model=name), UNKNOWN_MODEL)
        yield Case(f"Segment by {name!r:.30}", VISION + "Segment", segment(model=name), UNKNOWN_MODEL)
        yield Case(f"ModelInfer by {name!r:.30}", OIP + "ModelInfer", infer(model_name=name), UNKNOWN_MODEL)
        for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
            yield Case(f"{method} by {name!r:.30}", OIP + method, _named(method, name), UNKNOWN_MODEL)
        yield Case(f"ModelReady by {name!r:.30}", OIP + "ModelReady", _named("ModelReady", name), OK)
        yield Case(f"Check by {name!r:.30}", HEALTH + "Check", _health(name), UNKNOWN_SERVICE)
    for version in (2, 10**9, 2**63 - 1, -1, -(2**63)):
        wanted = UNKNOWN_MODEL if version > 0 else BAD_REQUEST
        yield Case(f"Classify, version {version}", VISION + "Classify", classify(version=version), wanted)
        yield Case(f"Segment, version {version}", VISION + "Segment", segment(version=version), wanted)
    for text in VERSIONS:
        yield Case(f"ModelInfer, version {text!r:.20}", OIP + "ModelInfer", infer(model_version=text), BAD_REQUEST)
        yield Case(
            f"ModelConfig, version {text!r:.20}",
            OIP + "ModelConfig",
            _named("ModelConfig", "doubler", text),
            BAD_REQUEST,
        )
    for model in ("colours", "waves", "doubler"):
        yield Case(f"Classify by {model}", VISION + "Classify", classify(model=model), BAD_REQUEST)
    for model in ("letters", "waves", "doubler"):
        yield Case(f"Segment by {model}", VISION + "Segment", segment(model=model), BAD_REQUEST)


def _images() -> Iterator[Case]:
    for kind, data in NO_PICTURES.items():
        yield Case(f"Classify {kind}", VISION + "Classify", classify(image=pb.Image(encoded=data)), BAD_IMAGE)
        yield Case(f"Segment {kind}", VISION + "Segment", segment(image=pb.Image(encoded=data)), BAD_IMAGE)
    for height, width, channels, nbytes in RAW:
        raw = pb.RawImage(pixels=bytes(nbytes), height_px=height, width_px=width, channels=channels)
        what = f"{nbytes} bytes as {height}x{width}x{channels}"
        yield Case(f"Classify {what}", VISION + "Classify", classify(image=pb.Image(raw=raw)), BAD_IMAGE)
    yield Case("Classify an image of nothing", VISION + "Classify", classify(image=pb.Image()), BAD_IMAGE)
    yield Case("Classify no image", VISION + "Classify", pb.ClassifyRequest(model="letters"), BAD_REQUEST)
    yield Case("Segment no image", VISION + "Segment", pb.SegmentRequest(model="colours"), BAD_REQUEST)


def _fields() -> Iterator[Case]:
    for value in (3, 99, -1, 2**31 - 1):
        yield Case(f"Classify, priority {value}", VISION + "Classify", classify(priority=value), BAD_REQUEST)
        yield Case(
            f"Segment, format for {value}", VISION + "Segment", segment(format=4 if value <= 3 else value), BAD_REQUEST
        )
    for value in (1, 10, 11, 2**32 - 1):
        yield Case(f"Classify, top_k {value}", VISION + "Classify", classify(top_k=value), OK)


def _tensors() -> Iterator[Case]:
    for datatype in ("", "FP16", "FP64", "INT8", "BYTES", "fp32", "FP32 ", "x" * 1000):
        yield Case(f"datatype {datatype!r:.20}", OIP + "ModelInfer", infer(datatype=datatype), BAD_TENSOR)
    for name in ("", "y", "X", "x" * 300, "../x", "\0", "x\n"):
        yield Case(f"input {name!r:.20}", OIP + "ModelInfer", infer(name=name), BAD_TENSOR)
    for shape in ([], [4], [1, 1, 4], [1, 5], [4, 1], [2, 4], [1] * 30):
        yield Case(f"shape {shape}", OIP + "ModelInfer", infer(shape=shape), BAD_TENSOR)
    for nbytes in (0, 1, 15, 17, 4096):
        yield Case(f"{nbytes} bytes", OIP + "ModelInfer", infer(raw=[bytes(nbytes)]), BAD_TENSOR)
    for raw in ([bytes(16), bytes(16)], [b"", bytes(16)], [bytes(8)] * 3):
        yield Case(f"{len(raw)} contents", OIP + "ModelInfer", infer(raw=raw), BAD_TENSOR)
    for output in ("", "z", "Y", "../y", "y" * 300, "\0"):
        yield Case(f"output {output!r:.20}", OIP + "ModelInfer", infer(outputs=[output]), BAD_TENSOR)
    yield Case("no input", OIP + "ModelInfer", oip.ModelInferRequest(model_name="doubler"), BAD_TENSOR)
    twice = infer()
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(bytes(16))
    yield Case("an input twice", OIP + "ModelInfer", twice, BAD_TENSOR)
    both = infer()
    both.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    yield Case("contents twice", OIP + "ModelInfer", both, BAD_TENSOR)


def _parameters() -> Iterator[Case]:
    kinds: tuple[tuple[str, Any], ...] = (*(("string_param", "1"), ("bool_param", True), ("double_param", 1.0)),)
    for name in ("timeout", "priority"):
        for kind, value in kinds:
            request = infer()
            setattr(request.parameters[name], kind, value)
            yield Case(f"{name} as {kind}", OIP + "ModelInfer", request, BAD_REQUEST)
    for number in (-1, -(2**63)):
        request = infer()
        request.parameters["timeout"].int64_param = number
        yield Case(f"timeout {number}", OIP + "ModelInfer", request, BAD_REQUEST)
    for number in (0, -1, -(2**63)):
        request = infer(outputs=["y"])
        request.outputs[0].parameters["classification"].int64_param = number
        yield Case(f"classification {number}", OIP + "ModelInfer", request, BAD_TENSOR)
    for name in ("shared_memory_region", "shared_memory_offset"):
        request = infer(outputs=["y"])
        request.outputs[0].parameters[name].string_param = "/dev/shm/x"
        yield Case(f"output parameter {name}", OIP + "ModelInfer", request, BAD_TENSOR)


def _others() -> Iterator[Case]:
    for path in (
        "/",
        "/nobody/Nothing",
        VISION,
        VISION + "Nothing",
        VISION + "classify",
        OIP + "../ModelInfer",
        HEALTH + "check",
        "/x" * 500,
    ):
        yield Case(f"method {path:.40}", path, b"", ("UNIMPLEMENTED", ""))
    for method in ("Classify", "Segment"):
        for data in (b"\xff", b"\x08", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\x80" * 11, b"\x0b" * 200):
            yield Case(f"{method} of {data[:6].hex()}", VISION + method, data, BAD_REQUEST)
    for method in ("ModelInfer", "ModelConfig", "RepositoryIndex"):
        for data in (b"\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe"):
            yield Case(f"{method} of {data.hex()}", OIP + method, data, BAD_REQUEST)
    yield Case("Check of no message", HEALTH + "Check", b"\xff", BAD_REQUEST)


def classify(model: str = "letters", image: pb.Image | None = None, **more: Any) -> pb.ClassifyRequest:
    """A good request, changed."""
    return pb.ClassifyRequest(model=model, images=[image or _image(1)], **more)


def segment(model: str = "colours", image: pb.Image | None = None, **more: Any) -> pb.SegmentRequest:
    """A good request, changed."""
    return pb.SegmentRequest(model=model, images=[image or _image(3)], **more)


def infer(
    *,
    name: str = "x",
    datatype: str = "FP32",
    shape: Any = (1, 4),
    raw: Any = (bytes(16),),
    outputs: Any = (),
    **more: Any,
) -> oip.ModelInferRequest:
    """A good request, changed."""
    tensor = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    request = oip.ModelInferRequest(**{"model_name": "doubler", **more}, inputs=[tensor], raw_input_contents=raw)
    for output in outputs:
        request.outputs.add(name=output)
    return request


def _image(channels: int) -> pb.Image:
    return pb.Image(raw=pb.RawImage(pixels=bytes(64 * channels), height_px=8, width_px=8, channels=channels))


def _named(method: str, name: str, version: str = "") -> Any:
    return getattr(oip, f"{method}Request")(name=name, version=version)


def _health(name: str) -> Any:
    from grpc_health.v1 import health_pb2

    return health_pb2.HealthCheckRequest(service=name)
