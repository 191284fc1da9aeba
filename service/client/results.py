"""The server's answers as plain values, parsed from the messages of `convoy.v1.Vision` and from gRPC errors."""

import io
from collections.abc import Mapping
from typing import Any, TypeVar

import grpc
import msgspec
import numpy as np
import PIL.Image
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

from convoy.service.errors import ConvoyError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

Mask = NDArray[np.uint8]
Result = TypeVar("Result")
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class ServerError(ConvoyError):
    """The server's error for a request or for one of its images, or a server that does not answer.

    code         grpc.StatusCode, which determines what to do: INVALID_ARGUMENT fix the request, RESOURCE_EXHAUSTED back
                 off, UNAVAILABLE try another replica, ...
    reason       machine-readable: BAD_IMAGE, QUEUE_FULL, ...; the code's name if the server sent none
    retry_after  seconds after which a retry makes sense, or None
    """

    def __init__(self, code: Any, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code
        self.reason = reason


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """One image's time per stage in the server, in seconds; `total` runs from the request's arrival to the result."""

    receive: float
    decode: float
    preprocess: float
    queue: float
    gather: float
    run: float
    scatter: float
    postprocess: float
    total: float
    batch_size: int  # images in the batch it ran in


STAGES = tuple(name for name in Timings.__struct_fields__ if name not in ("total", "batch_size"))


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """One class and its probability, 0..1."""

    index: int
    name: str
    probability: float


class Classification(msgspec.Struct, frozen=True, kw_only=True):
    """One image's ranked labels, most probable first."""

    model: str
    version: int
    labels: tuple[Label, ...]
    timings: Timings


class ClassPixels(msgspec.Struct, frozen=True, kw_only=True):
    """The number of a mask's pixels that belong to one class."""

    index: int
    name: str
    pixels: int


class Segmentation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One image's class per pixel, in the size of the image that was sent (after its EXIF rotation).

    mask          (H, W) uint8, class indices
    confidence    (H, W) uint8, the winning class's probability times 255, or None if not requested
    class_pixels  one entry per class, including those without pixels
    """

    model: str
    version: int
    mask: Mask
    confidence: Mask | None
    class_pixels: tuple[ClassPixels, ...]
    timings: Timings


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A model's image input. `colour` is empty if it accepts no images; `height` and `width` are 0 for any size."""

    height: int
    width: int
    multiple: int
    colour: str  # RGB or L
    fit: str  # stretch, crop, letterbox or pad
    min_height: int = 1  # smaller images are padded to this
    min_width: int = 1


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Along one axis, how many pixels before and after a pixel may affect its class. A part of an image has the same
    classes only if it begins at a multiple of `stride`."""

    before: int
    after: int
    stride: int


class ReceptiveField(msgspec.Struct, frozen=True, kw_only=True):
    """What of an image the class of a pixel depends on; None: on all of the axis."""

    height: Context | None = None
    width: Context | None = None


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """An axis of a tensor. `size` is 0 for any length.

    `spacing` is the distance between neighbouring elements, in `unit`, or 0 if unknown. `labels` of the elements may be
    empty.
    """

    name: str  # channel, time, depth, height or width
    size: int
    spacing: float
    unit: str
    labels: tuple[str, ...]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a model that does not accept images: a tensor whose dimensions are N and then `axes`."""

    name: str
    datatype: str  # FP32 or UINT8
    axes: tuple[Axis, ...]
    unit: str  # of its values


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model. `palette[i]` is the (red, green, blue) of class i in pictures, 0..255; may be empty."""

    model: str
    version: int
    state: str  # loading, ready or unavailable
    reason: str  # why it is not ready; if ready, why requests run one at a time
    task: str  # classification, segmentation, matching or tensors
    provider: str
    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    input: Input
    tensor: Tensor | None
    architecture: str
    data: str
    metrics: Mapping[str, float]
    max_batch_size: int
    precision: str = ""  # fp16 or int8, if exported with reduced precision
    receptive_field: ReceptiveField | None = None  # of a mask of any size; None: not known
    confidence: bool = False  # whether its masks come with a confidence on request


def read_classifications(response: pb.ClassifyResponse) -> list[Classification | ServerError]:
    """A result or an error for each image, in the order of the request."""
    return [
        read_message_error(result.error)
        if result.HasField("error")
        else Classification(
            model=response.model,
            version=response.version,
            labels=tuple(
                Label(index=label.index, name=label.name, probability=label.probability)
                for label in result.classification.labels
            ),
            timings=_timings(result.timings),
        )
        for result in response.results
    ]


def read_segmentations(response: pb.SegmentResponse) -> list[Segmentation | ServerError]:
    """A result or an error for each image, in the order of the request; masks of all formats are decoded."""
    return [
        read_message_error(result.error)
        if result.HasField("error")
        else Segmentation(
            model=response.model,
            version=response.version,
            mask=_mask(result.segmentation),
            confidence=_confidence(result.segmentation),
            class_pixels=tuple(
                ClassPixels(index=entry.class_index, name=entry.name, pixels=entry.pixels)
                for entry in result.segmentation.class_pixels
            ),
            timings=_timings(result.timings),
        )
        for result in response.results
    ]


def read_streamed_classification(message: pb.ClassifyStreamResponse) -> Classification | ServerError:
    """The result of the one image of a stream's request."""
    return read_message_error(message.error) if message.HasField("error") else read_classifications(message.response)[0]


def read_streamed_segmentation(message: pb.SegmentStreamResponse) -> Segmentation | ServerError:
    """The result of the one image of a stream's request."""
    return read_message_error(message.error) if message.HasField("error") else read_segmentations(message.response)[0]


def single(results: list[Result | ServerError]) -> Result:
    """The result of a request with one image. Raises ServerError."""
    (result,) = results
    if isinstance(result, ServerError):
        raise result
    return result


def next_page(response: pb.ListModelsResponse) -> pb.ListModelsRequest | None:
    """The request for the page after this one; None if there is none."""
    token = response.next_page_token
    return pb.ListModelsRequest(page_token=token) if token else None


def read_models(response: pb.ListModelsResponse) -> list[Model]:
    """Every version of every model on a page, in the server's order."""
    return [
        Model(
            model=info.model,
            version=info.version,
            state=pb.ModelState.Name(info.state).removeprefix("MODEL_STATE_").lower(),
            reason=info.reason,
            task=pb.Task.Name(info.task).removeprefix("TASK_").lower(),
            provider=info.provider,
            labels=tuple(info.labels),
            palette=tuple((colour.red, colour.green, colour.blue) for colour in info.palette),
            input=Input(
                height=info.input.height_px,
                width=info.input.width_px,
                multiple=info.input.multiple,
                colour=info.input.colour,
                fit=info.input.fit,
                min_height=info.input.min_height_px or 1,
                min_width=info.input.min_width_px or 1,
            ),
            tensor=_tensor(info.tensor) if info.HasField("tensor") else None,
            architecture=info.architecture,
            data=info.data,
            metrics=dict(info.metrics),
            max_batch_size=info.max_batch_size,
            precision=info.precision,
            receptive_field=_receptive_field(info.receptive_field) if info.HasField("receptive_field") else None,
            confidence=info.confidence,
        )
        for info in response.models
    ]


def read_error(error: Any, target: str, deadline: float | None) -> ServerError:
    """The ServerError for a grpc.RpcError of a call to `target` with a deadline of `deadline` seconds."""
    code, message = error.code(), error.details() or ""
    reason, retry_after = "", None
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    # gRPC's own messages for these two codes are long or empty; a server's messages are left unchanged.
    if not reason and code is grpc.StatusCode.UNAVAILABLE:
        message = _unavailable(target, message)
    if not reason and code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline is not None:
        return late(target, deadline)
    return ServerError(code, reason or code.name, message, retry_after)


def late(target: str, deadline: float | None) -> ServerError:
    """The ServerError for a call to `target` that was not answered within `deadline` seconds."""
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    return ServerError(code, code.name, f"no answer from {target} within {deadline:g} seconds")


def read_message_error(error: pb.ImageError | pb.RequestError) -> ServerError:
    """The ServerError for an error within an answer."""
    code = _STATUS.get(error.code, grpc.StatusCode.UNKNOWN)
    retry_after = error.retry_after_seconds or None if isinstance(error, pb.RequestError) else None
    return ServerError(code, error.reason or code.name, error.message, retry_after)


def stream_ended(target: str, unanswered: int) -> ServerError:
    """The ServerError of a stream that the server ended before the client had sent and received everything."""
    code = grpc.StatusCode.UNAVAILABLE
    return ServerError(code, code.name, f"{target} ended the stream, {unanswered} requests had no answer")


def _unavailable(target: str, message: str) -> str:
    if message.startswith("connections to all backends failing"):
        return f"no server of {target} serves (the last one: {message.rpartition(': ')[2]})"
    if message.startswith("failed to connect"):
        why = message.rpartition(": ")[2]
    elif "resol" in message:  # "errors resolving foo: [field:hostname lookup error:address lookup failed ...]"
        why = message.rpartition("lookup error:")[2].rstrip("]")
    else:
        return f"{target} ended the call ({message}): the server stopped, or the connection was lost"
    return f"no answer from {target} ({why}): is a Convoy server running there?"


def _timings(timings: pb.Timings) -> Timings:
    seconds = {name: getattr(timings, f"{name}_seconds") for name in (*STAGES, "total")}
    return Timings(batch_size=timings.batch_size, **seconds)


def _receptive_field(field: pb.ReceptiveField) -> ReceptiveField:
    return ReceptiveField(
        height=_context(field.height) if field.HasField("height") else None,
        width=_context(field.width) if field.HasField("width") else None,
    )


def _context(context: pb.Context) -> Context:
    return Context(before=context.before_px, after=context.after_px, stride=context.stride_px)


def _tensor(tensor: pb.TensorInput) -> Tensor:
    axes = tuple(
        Axis(name=axis.name, size=axis.size, spacing=axis.spacing, unit=axis.unit, labels=tuple(axis.labels))
        for axis in tensor.axes
    )
    return Tensor(name=tensor.name, datatype=tensor.datatype, axes=axes, unit=tensor.unit)


def _mask(segmentation: pb.Segmentation) -> Mask:
    shape = (segmentation.height_px, segmentation.width_px)
    if segmentation.format == pb.MASK_FORMAT_PNG:
        return _png(segmentation.mask)
    if segmentation.format == pb.MASK_FORMAT_RLE:
        mask = np.zeros(shape, np.uint8)
        for run in segmentation.run_lengths:
            mask[run_lengths.decode({"size": shape, "counts": run.counts}) == 1] = run.class_index
        return mask
    return np.frombuffer(segmentation.mask, np.uint8).reshape(shape)


def _confidence(segmentation: pb.Segmentation) -> Mask | None:
    if not segmentation.confidence:
        return None
    if segmentation.format == pb.MASK_FORMAT_PNG:
        return _png(segmentation.confidence)
    return np.frombuffer(segmentation.confidence, np.uint8).reshape(segmentation.height_px, segmentation.width_px)


def _png(data: bytes) -> Mask:
    # A palette file's array contains its indices, a grey one's its values.
    return np.asarray(PIL.Image.open(io.BytesIO(data)), np.uint8)
