"""Good requests of every method, and good pictures of every kind: what mutations begin with."""

import io
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image

from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2

SERVICES: tuple[ServiceDescriptor, ...] = (
    vision_pb2.DESCRIPTOR.services_by_name["Vision"],
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)


class Method(NamedTuple):
    """A method as a caller names it."""

    path: str
    descriptor: MethodDescriptor

    @property
    def name(self) -> str:
        return str(self.descriptor.name)

    @property
    def streams(self) -> bool:
        return bool(self.descriptor.client_streaming or self.descriptor.server_streaming)


METHODS: tuple[Method, ...] = tuple(
    Method(f"/{service.full_name}/{method.name}", method) for service in SERVICES for method in service.methods
)


@cache
def pictures() -> tuple[bytes, ...]:
    """Small pictures of each kind that is decoded."""
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (16, 12, 3), np.uint8))
    grey, palette = colours.convert("L"), colours.convert("P")
    deep = Image.fromarray(rng.integers(0, 65_536, (9, 7)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours, "JPEG", {}),
        (colours, "JPEG", {"progressive": True, "quality": 95, "subsampling": 0}),
        (grey, "JPEG", {"exif": turned}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "JPEG", {"restart_marker_blocks": 1, "comment": b"x" * 20}),
        (colours, "PNG", {}),
        (grey, "PNG", {}),
        (grey.convert("1"), "PNG", {}),
        (palette, "PNG", {"transparency": 3}),
        (colours.convert("RGBA"), "PNG", {"exif": turned}),
        (colours.convert("LA"), "PNG", {}),
        (deep, "PNG", {}),
    ]
    return tuple(_saved(*each) for each in made)


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def requests(name: str) -> tuple[bytes, ...]:
    """Good messages of a method, encoded: some that it serves on the small networks, and one with every field set."""
    (method,) = (each.descriptor for each in METHODS if each.name == name)
    made = [*_served(name), _full(GetMessageClass(method.input_type)())]
    return tuple(message.SerializeToString() for message in made)


def _served(name: str) -> Iterator[Any]:
    pixels = np.random.default_rng(2).integers(0, 256, 64, np.uint8).tobytes()
    raw = vision_pb2.Image(raw=vision_pb2.RawImage(pixels=pixels, height_px=8, width_px=8, channels=1))
    encoded = [vision_pb2.Image(encoded=data) for data in pictures()]
    classify = [
        vision_pb2.ClassifyRequest(model="letters", images=[raw]),
        vision_pb2.ClassifyRequest(model="letters", version=1, images=[raw, *encoded[:3]], top_k=3, priority=2),
    ]
    segment = [
        vision_pb2.SegmentRequest(model="colours", images=[each], format=number % 4, with_confidence=number % 2 > 0)
        for number, each in enumerate((raw, *encoded[:4]))
    ]
    match name:
        case "Classify":
            yield from classify
        case "Segment":
            yield from segment
        case "ClassifyStream":
            for each in classify:
                yield vision_pb2.ClassifyStreamRequest(id=7, request=each, deadline_seconds=10)
        case "SegmentStream":
            for one in segment:
                yield vision_pb2.SegmentStreamRequest(id=8, request=one)
        case "ModelInfer" | "ModelStreamInfer":
            yield from _infer()
        case "ModelReady" | "ModelMetadata" | "ModelConfig" | "ModelStatistics":
            yield GetMessageClass(inference_pb2.DESCRIPTOR.message_types_by_name[f"{name}Request"])(
                name="letters", version="1"
            )
        case "Check" | "Watch":
            yield health_pb2.HealthCheckRequest(service="letters")
        case "ServerReflectionInfo":
            yield reflection_pb2.ServerReflectionRequest(host="h", file_containing_symbol="convoy.v1.Vision")
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            yield reflection_pb2.ServerReflectionRequest(
                file_containing_extension=reflection_pb2.ExtensionRequest(
                    containing_type="convoy.v1.Image", extension_number=5
                )
            )


def _infer() -> Iterator[Any]:
    kind = inference_pb2.ModelInferRequest
    values = np.arange(8, dtype=np.float32)
    tensor = kind.InferInputTensor(name="x", datatype="FP32", shape=[2, 4])
    yield kind(model_name="doubler", id="17", inputs=[tensor], raw_input_contents=[values.tobytes()])
    tensor = kind.InferInputTensor(name="x", datatype="FP32", shape=[2, 4])
    tensor.contents.fp32_contents.extend(values.tolist())
    request = kind(model_name="doubler", model_version="1", inputs=[tensor])
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    request.parameters["timeout"].int64_param = 10_000_000
    request.parameters["priority"].uint64_param = 2
    yield request


def _full(message: Any, depth: int = 4) -> Any:
    """The message with something in every field."""
    for field in message.DESCRIPTOR.fields:
        _fill(message, field, depth)
    return message


def _fill(message: Any, field: Any, depth: int) -> None:
    value = getattr(message, field.name)
    if field.message_type is None:
        scalar = {field.CPPTYPE_STRING: "x" if field.type == field.TYPE_STRING else b"x"}.get(field.cpp_type, 1)
        if field.is_repeated:
            value.append(scalar)
        else:
            setattr(message, field.name, scalar)
    elif depth:
        if field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            key = "x" if field.message_type.fields_by_name["key"].type == field.TYPE_STRING else 1
            if inner.message_type is None:
                value[key] = "x" if inner.type == inner.TYPE_STRING else 1
            else:
                _full(value[key], depth - 1)
        elif field.is_repeated:
            _full(value.add(), depth - 1)
        else:
            _full(value, depth - 1)
            value.SetInParent()
