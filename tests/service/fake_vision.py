"""A server of `convoy.v1.Vision` on a real socket, its answers known: what clients and commands are tested with."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import PIL.Image
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from pycocotools import mask as run_lengths

from convoy.service.pb.convoy.v1 import vision_pb2 as pb

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
CLASSES = ("background", "cat", "dog")
TIMINGS = pb.Timings(
    receive_seconds=0.0001,
    decode_seconds=0.0002,
    preprocess_seconds=0.0003,
    queue_seconds=0.0014,
    run_seconds=0.003,
    total_seconds=0.0055,
    batch_size=4,
)


class FakeVision:
    """Answers by what it is sent.

    An image is of the class of its first pixel's value (red where there are three); a mask has class 1 where a pixel is
    brighter than 127 and class 2 in the first row. An image that is no PNG is refused. The model's name asks for more:
    `missing`, `full` (with a retry hint of 0.25 s), `bare` (an error without details), `never` (no answer).
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.batch_size = 4
        self.models = [
            pb.ModelInfo(
                model="digits",
                version=3,
                state=pb.MODEL_STATE_READY,
                task=pb.TASK_CLASSIFICATION,
                provider="CPUExecutionProvider",
                labels=[str(digit) for digit in range(10)],
                input=pb.InputSize(height_px=32, width_px=32, multiple=1, colour="L", fit="letterbox"),
                metrics={"top1": 0.9912},
                max_batch_size=32,
            ),
            pb.ModelInfo(
                model="pets",
                version=2,
                state=pb.MODEL_STATE_READY,
                task=pb.TASK_SEGMENTATION,
                provider="CPUExecutionProvider",
                labels=CLASSES,
                palette=[pb.Colour(red=red, green=green, blue=blue) for red, green, blue in PALETTE],
                input=pb.InputSize(multiple=8, colour="RGB", fit="pad"),
            ),
            pb.ModelInfo(model="broken", version=1, state=pb.MODEL_STATE_UNAVAILABLE, reason="model.onnx is cut short"),
        ]

    def classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self._begin(request, context)
        response = pb.ClassifyResponse(model=request.model or "digits", version=request.version or 3)
        for image in request.images:
            result = response.results.add()
            pixels = _pixels(image)
            if pixels is None:
                self._refuse(result, context, request)
                continue
            first = int(pixels.flat[0]) % 10
            for rank in range(request.top_k or 5):
                index = (first + rank) % 10
                result.classification.labels.add(index=index, name=str(index), probability=0.5 / 2**rank)
            self._time(result)
        return response

    def segment(self, request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        self._begin(request, context)
        response = pb.SegmentResponse(model=request.model or "pets", version=request.version or 2)
        for image in request.images:
            result = response.results.add()
            pixels = _pixels(image)
            if pixels is None:
                self._refuse(result, context, request)
                continue
            mask = (pixels.reshape(*pixels.shape[:2], -1)[..., 0] > 127).astype(np.uint8)
            mask[0] = 2
            _fill(result.segmentation, mask, request)
            self._time(result)
        return response

    def list_models(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        # One model a page: what a client must put together.
        first = int(request.page_token or 0)
        further = str(first + 1) if first + 1 < len(self.models) else ""
        return pb.ListModelsResponse(models=self.models[first : first + 1], next_page_token=further)

    def _begin(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if request.model == "missing":
            _abort(context, code_pb2.NOT_FOUND, "UNKNOWN_MODEL", "no model 'missing'")
        if request.model == "full":
            _abort(context, code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", "1024 images wait already", retry_ms=250)
        if request.model == "bare":
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "not offered")
        if request.model == "never":
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(20)

    def _refuse(self, result: Any, context: grpc.ServicerContext, request: Any) -> None:
        message = "image is not a PNG, want a JPEG or PNG file"
        if len(request.images) == 1:
            _abort(context, code_pb2.INVALID_ARGUMENT, "BAD_IMAGE", message)
        result.error.CopyFrom(pb.ImageError(code=code_pb2.INVALID_ARGUMENT, reason="BAD_IMAGE", message=message))

    def _time(self, result: Any) -> None:
        result.timings.CopyFrom(TIMINGS)
        result.timings.batch_size = self.batch_size


def png_file(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@contextmanager
def serving(fake: FakeVision) -> Iterator[str]:
    """Lets `fake` answer at the target that is given."""
    implementations = {
        "Classify": fake.classify,
        "Segment": fake.segment,
        "ListModels": fake.list_models,
    }
    vision = pb.DESCRIPTOR.services_by_name["Vision"]
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            implementations[method.name],
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in vision.methods
        if method.name in implementations
    }
    server = grpc.server(
        ThreadPoolExecutor(8),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(vision.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _pixels(image: pb.Image) -> np.ndarray | None:
    if image.HasField("raw"):
        shape = (image.raw.height_px, image.raw.width_px, image.raw.channels)
        return np.frombuffer(image.raw.pixels, np.uint8).reshape(shape)
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(image.encoded)))
    except OSError:
        return None


def _fill(segmentation: pb.Segmentation, mask: np.ndarray, request: pb.SegmentRequest) -> None:
    confidence = np.full(mask.shape, 200, np.uint8)
    segmentation.height_px, segmentation.width_px = mask.shape
    segmentation.format = request.format or pb.MASK_FORMAT_RAW
    if segmentation.format == pb.MASK_FORMAT_RAW:
        segmentation.mask = mask.tobytes()
    elif segmentation.format == pb.MASK_FORMAT_PNG:
        image = PIL.Image.fromarray(mask)
        image.putpalette(np.array(PALETTE, np.uint8).tobytes())
        file = io.BytesIO()
        image.save(file, "PNG")
        segmentation.mask = file.getvalue()
    else:
        for index in np.unique(mask):
            counts = run_lengths.encode(np.asfortranarray(mask == index))["counts"]
            segmentation.run_lengths.add(class_index=int(index), counts=counts)
    if request.with_confidence:
        png = segmentation.format == pb.MASK_FORMAT_PNG
        segmentation.confidence = png_file(confidence) if png else confidence.tobytes()
    for index, name in enumerate(CLASSES):
        segmentation.class_pixels.add(class_index=index, name=name, pixels=int((mask == index).sum()))


def _abort(context: grpc.ServicerContext, code: int, reason: str, message: str, retry_ms: int | None = None) -> None:
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="convoy")]
    if retry_ms is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=retry_ms * 1_000_000)))
    packed = [AnyMessage() for _ in details]
    for place, detail in zip(packed, details, strict=True):
        place.Pack(detail)
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed)))
