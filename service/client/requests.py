"""The client's requests, single and over a stream: images as messages, and checks before sending."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from convoy.service.client import trace
from convoy.service.client.pictures import accepted, as_png
from convoy.service.client.results import stream_ended
from convoy.service.errors import BadImage, BadRequest
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

ImageSource = str | Path | bytes | NDArray[np.uint8] | PIL.Image.Image
ImageSources = Iterable[ImageSource] | AsyncIterable[ImageSource]
MaskFormat = Literal["raw", "png", "rle"]
Priority = Literal["normal", "low"]
_MAX_TOP_K = 2**32 - 1  # maximum of the message's field; a server returns at most as many labels as the model has

_MAX_VERSION = 2**63 - 1

_PRIORITIES = {"normal": pb.PRIORITY_UNSPECIFIED, "low": pb.PRIORITY_LOW}
_FORMATS = {"raw": pb.MASK_FORMAT_RAW, "png": pb.MASK_FORMAT_PNG, "rle": pb.MASK_FORMAT_RLE}


def methods(channel: Any, metadata: Sequence[tuple[str, str]] = ()) -> dict[str, Callable[..., Any]]:
    """The methods of `convoy.v1.Vision` on a channel, of threads or of asyncio, by name; `metadata` goes with each,
    and so does the span that the program is inside."""
    # Built from the schema, so that there are no generated method stubs to maintain next to the messages.
    vision = pb.DESCRIPTOR.services_by_name["Vision"]
    found: dict[str, Callable[..., Any]] = {
        method.name: (channel.stream_stream if method.client_streaming else channel.unary_unary)(
            f"/{vision.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        for method in vision.methods
    }
    return {name: partial(_called, call, metadata) for name, call in found.items()}


def _called(call: Callable[..., Any], metadata: Sequence[tuple[str, str]], request: Any, **options: Any) -> Any:
    return call(request, metadata=trace.headers(metadata), **options)


def classify_request(
    images: Iterable[ImageSource], model: str, version: int, top_k: int, priority: Priority
) -> pb.ClassifyRequest:
    """Raises BadImage, BadRequest."""
    _check("version", version, _MAX_VERSION)
    _check("top_k", top_k, _MAX_TOP_K)
    return pb.ClassifyRequest(
        model=model, version=version, images=map(_message, images), top_k=top_k, priority=_PRIORITIES[priority]
    )


def segment_request(
    images: Iterable[ImageSource], model: str, version: int, mask: MaskFormat, with_confidence: bool, priority: Priority
) -> pb.SegmentRequest:
    """Raises BadImage, BadRequest."""
    _check("version", version, _MAX_VERSION)
    return pb.SegmentRequest(
        model=model,
        version=version,
        images=map(_message, images),
        format=_FORMATS[mask],
        with_confidence=with_confidence,
        priority=_PRIORITIES[priority],
    )


class Sending:
    """The requests of one stream, numbered in order; `request(number, image)` creates one when there is room for it.

    gRPC iterates over them, in its own thread or task. So an error in an image ends the requests and is stored, for the
    caller that reads the answers.
    """

    def __init__(self, images: ImageSources, request: Callable[[int, ImageSource], Message]) -> None:
        self._images = images
        self._request = request
        self._sent = 0
        self._complete = False  # all images are sent
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        try:
            if not isinstance(self._images, Iterable):
                raise BadRequest(f"images are {type(self._images).__name__}, want something to iterate over")
            for image in self._images:
                yield self._next(image)
            self._complete = True
        except Exception as error:
            self._failure = error

    async def __aiter__(self) -> AsyncIterator[Message]:
        if not isinstance(self._images, AsyncIterable):
            for message in self:
                yield message
            return
        try:
            async for image in self._images:
                yield self._next(image)
            self._complete = True
        except Exception as error:
            self._failure = error

    def check_complete(self, answered: int, target: str) -> None:
        """Raises the failure of a stream that has ended: the caller's own exception, or a ServerError."""
        if self._failure is not None:
            raise self._failure
        if not self._complete or answered < self._sent:
            raise stream_ended(target, self._sent - answered)

    def _next(self, image: ImageSource) -> Message:
        message = self._request(self._sent, image)
        self._sent += 1
        return message


def classify_requests(
    images: ImageSources, model: str, version: int, top_k: int, priority: Priority, deadline: float | None
) -> Sending:
    """The requests of a ClassifyStream; `deadline` is in seconds. Raises BadRequest for a `deadline` of 0 or less."""
    limit = _stream_deadline(deadline)

    def request(number: int, image: ImageSource) -> pb.ClassifyStreamRequest:
        inner = classify_request([image], model, version, top_k, priority)
        return pb.ClassifyStreamRequest(id=number, request=inner, deadline_seconds=limit)

    return Sending(images, request)


def segment_requests(
    images: ImageSources,
    model: str,
    version: int,
    mask: MaskFormat,
    with_confidence: bool,
    priority: Priority,
    deadline: float | None,
) -> Sending:
    """The requests of a SegmentStream; raises as `classify_requests`."""
    limit = _stream_deadline(deadline)

    def request(number: int, image: ImageSource) -> pb.SegmentStreamRequest:
        inner = segment_request([image], model, version, mask, with_confidence, priority)
        return pb.SegmentStreamRequest(id=number, request=inner, deadline_seconds=limit)

    return Sending(images, request)


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file; of one that is neither JPEG nor PNG, those of a PNG file of the same picture.

    Raises BadImage, naming the file.
    """
    try:
        return accepted(Path(path).read_bytes(), f"image {str(path)!r}")
    except OSError as error:
        raise BadImage(f"cannot read image {str(path)!r}: {error.strerror}") from None


def _check(name: str, value: int, largest: int) -> None:
    if not 0 <= value <= largest:
        raise BadRequest(f"{name} is {value}, want 0 to {largest}")


def _stream_deadline(deadline: float | None) -> float:
    # 0 in a stream's messages means none.
    if deadline is not None and deadline <= 0:
        raise BadRequest(f"deadline is {deadline:g}, want more than 0 seconds")
    return deadline or 0


def _message(image: ImageSource) -> pb.Image:
    if isinstance(image, bytes):
        return pb.Image(encoded=accepted(image))
    if isinstance(image, str | Path):
        return pb.Image(encoded=read_image(image))
    if isinstance(image, PIL.Image.Image):
        return pb.Image(encoded=as_png(image, _name(image)))
    if not isinstance(image, np.ndarray):
        raise BadImage(f"image is a {type(image).__name__}, want a path, bytes, an array or a Pillow image")
    pixels = image[..., np.newaxis] if image.ndim == 2 else image
    if image.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise BadImage(f"array is {image.dtype} {image.shape}, want uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    height, width, channels = pixels.shape
    return pb.Image(raw=pb.RawImage(pixels=pixels.tobytes(), height_px=height, width_px=width, channels=channels))


def _name(image: PIL.Image.Image) -> str:
    file = getattr(image, "filename", "")  # of one that Pillow has opened
    return f"image {str(file)!r}" if file else "image"
