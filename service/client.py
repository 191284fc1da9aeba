"""A client of Convoy's server, for threads (`Client`) and for asyncio (`AsyncClient`).

    with Client("127.0.0.1:8001") as client:
        best = client.classify("four.png").labels[0]
        print(best.name, best.probability)
        mask = client.segment(pixels, model="unet").mask  # (H, W) uint8, class indices

An image is a path, the bytes of a JPEG or PNG file, or uint8 pixels: (H, W) or (H, W, 1) grey, (H, W, 3) RGB,
(H, W, 4) RGBA. One image gives its result or raises ServerError; a sequence of them gives a list with a result or a
ServerError for each, and raises only where the whole request failed. A `deadline` is the seconds in which the answer
must be here; it travels with the request, so the server does no work that comes too late. What a client of `priority`
"low" asks for runs behind what others ask for, but does not wait for ever. Nothing is sent twice: who wants that waits
`ServerError.retry_after` and calls again.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from service.answers import (
    Axis,
    Classification,
    ClassPixels,
    Input,
    Label,
    Model,
    Segmentation,
    ServerError,
    Tensor,
    Timings,
    read_classifications,
    read_error,
    read_models,
    read_segmentations,
    read_streamed_classification,
    read_streamed_segmentation,
    stream_ended,
)
from service.errors import BadImage, BadRequest
from service.pb.convoy.v1 import vision_pb2 as pb
from service.streaming import Sending

__all__ = [
    "AsyncClient",
    "Axis",
    "ClassPixels",
    "Classification",
    "Client",
    "ImageSource",
    "Input",
    "Label",
    "MaskFormat",
    "Model",
    "Priority",
    "Segmentation",
    "ServerError",
    "Tensor",
    "Timings",
    "read_image",
]

ImageSource = str | Path | bytes | NDArray[np.uint8]
MaskFormat = Literal["raw", "png", "rle"]
Priority = Literal["normal", "low"]
DEFAULT_TARGET = "127.0.0.1:8001"
MAX_TOP_K = 2**32 - 1  # what the message's field holds; a server gives as many labels as the model has
_MAX_VERSION = 2**63 - 1
T = TypeVar("T")

# The server's own limit decides how large a request may be, and an answer is as large as what was asked for.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: the kernel deals them out to the front ends
    ("grpc.enable_http_proxy", 0),  # where to connect is what the caller says, never the environment
)
_PRIORITIES = {"normal": pb.PRIORITY_UNSPECIFIED, "low": pb.PRIORITY_LOW}
_FORMATS = {"raw": pb.MASK_FORMAT_RAW, "png": pb.MASK_FORMAT_PNG, "rle": pb.MASK_FORMAT_RLE}


class Client:
    """Calls a server from threads; any number of them may share one client. Close it, or use it in `with`."""

    def __init__(self, target: str = DEFAULT_TARGET, *, priority: Priority = "normal") -> None:
        self._target = target
        self._priority = priority
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._methods = _methods(self._channel)

    def close(self) -> None:
        """Ends the connection; calls that wait for an answer are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a sequence of str: the first overload is its own
        self,
        images: ImageSource,
        model: str = ...,
        *,
        version: int = ...,
        top_k: int = ...,
        deadline: float | None = ...,
    ) -> Classification: ...
    @overload
    def classify(
        self,
        images: Sequence[ImageSource],
        model: str = ...,
        *,
        version: int = ...,
        top_k: int = ...,
        deadline: float | None = ...,
    ) -> list[Classification | ServerError]: ...
    def classify(
        self,
        images: ImageSource | Sequence[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> Classification | list[Classification | ServerError]:
        """The `top_k` most probable labels of each image.

        `model` may be empty where the server has one classification model; `version` 0 is the one that serves.
        Raises BadImage for a file that cannot be read or an array that is no image, BadRequest for a `version` or
        `top_k` that no server takes, ServerError.
        """
        request = _classify_request(images, model, version, top_k, self._priority)
        return _as_asked(read_classifications(self._call("Classify", request, deadline)), images)

    @overload
    def segment(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        model: str = ...,
        *,
        version: int = ...,
        format: MaskFormat = ...,
        with_confidence: bool = ...,
        deadline: float | None = ...,
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        images: Sequence[ImageSource],
        model: str = ...,
        *,
        version: int = ...,
        format: MaskFormat = ...,
        with_confidence: bool = ...,
        deadline: float | None = ...,
    ) -> list[Segmentation | ServerError]: ...
    def segment(
        self,
        images: ImageSource | Sequence[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> Segmentation | list[Segmentation | ServerError]:
        """The class of every pixel of each image, and with `with_confidence` how sure each is; a network that cannot
        tell refuses that.

        `format` is how masks travel, the result is the same: `raw` costs the server least, `png` and `rle` are smaller.
        Else as `classify`.
        """
        request = _segment_request(images, model, version, format, with_confidence, self._priority)
        return _as_asked(read_segmentations(self._call("Segment", request, deadline)), images)

    def classify_stream(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> Iterator[tuple[int, Classification | ServerError]]:
        """The labels of any number of images over one stream, each as soon as it is done: its place in `images`, and
        its result or the server's refusal.

        Images are taken from `images` while answers come, as fast as the server has room for them. `deadline` is each
        image's own, from its arrival at the server. Raises BadImage and BadRequest as `classify`, once what was sent
        before is answered. A ServerError that is raised ended the stream: what had no result by then has none.
        """

        seconds = _seconds(deadline)

        def request(number: int, image: ImageSource) -> pb.ClassifyStreamRequest:
            asked = _classify_request(image, model, version, top_k, self._priority)
            return pb.ClassifyStreamRequest(id=number, request=asked, deadline_seconds=seconds)

        return self._stream("ClassifyStream", Sending(images, request), read_streamed_classification)

    def segment_stream(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> Iterator[tuple[int, Segmentation | ServerError]]:
        """The class maps of any number of images over one stream: `segment`, in the way of `classify_stream`."""

        seconds = _seconds(deadline)

        def request(number: int, image: ImageSource) -> pb.SegmentStreamRequest:
            asked = _segment_request(image, model, version, format, with_confidence, self._priority)
            return pb.SegmentStreamRequest(id=number, request=asked, deadline_seconds=seconds)

        return self._stream("SegmentStream", Sending(images, request), read_streamed_segmentation)

    def models(self, deadline: float | None = None) -> list[Model]:
        """Every version of every model the server has, also those it cannot serve and why. Raises ServerError."""
        return read_models(self._call("ListModels", pb.ListModelsRequest(), deadline))

    def _call(self, method: str, request: Message, deadline: float | None) -> Any:
        try:
            return self._methods[method](request, timeout=deadline)
        except grpc.RpcError as error:
            raise read_error(error, self._target, deadline) from None

    def _stream(self, method: str, sending: Sending[ImageSource], read: Callable[[Any], T]) -> Iterator[tuple[int, T]]:
        call = self._methods[method](iter(sending))
        answered = 0
        try:
            for message in call:
                answered += 1
                yield message.id, read(message)
        except grpc.RpcError as error:
            raise read_error(error, self._target, None) from None
        finally:
            call.cancel()  # where the caller reads no further
        _check_complete(sending, answered, self._target)


class AsyncClient:
    """`Client` for asyncio. Create it inside the running loop; one client carries any number of calls at a time.

    Files named by path are read where they are called for, so send bytes where the loop must not wait for a disk.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, priority: Priority = "normal") -> None:
        self._target = target
        self._priority = priority
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._methods = _methods(self._channel)

    async def close(self) -> None:
        """Ends the connection; calls that wait for an answer are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    async def classify(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        model: str = ...,
        *,
        version: int = ...,
        top_k: int = ...,
        deadline: float | None = ...,
    ) -> Classification: ...
    @overload
    async def classify(
        self,
        images: Sequence[ImageSource],
        model: str = ...,
        *,
        version: int = ...,
        top_k: int = ...,
        deadline: float | None = ...,
    ) -> list[Classification | ServerError]: ...
    async def classify(
        self,
        images: ImageSource | Sequence[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> Classification | list[Classification | ServerError]:
        """As `Client.classify`."""
        request = _classify_request(images, model, version, top_k, self._priority)
        return _as_asked(read_classifications(await self._call("Classify", request, deadline)), images)

    @overload
    async def segment(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        model: str = ...,
        *,
        version: int = ...,
        format: MaskFormat = ...,
        with_confidence: bool = ...,
        deadline: float | None = ...,
    ) -> Segmentation: ...
    @overload
    async def segment(
        self,
        images: Sequence[ImageSource],
        model: str = ...,
        *,
        version: int = ...,
        format: MaskFormat = ...,
        with_confidence: bool = ...,
        deadline: float | None = ...,
    ) -> list[Segmentation | ServerError]: ...
    async def segment(
        self,
        images: ImageSource | Sequence[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> Segmentation | list[Segmentation | ServerError]:
        """As `Client.segment`."""
        request = _segment_request(images, model, version, format, with_confidence, self._priority)
        return _as_asked(read_segmentations(await self._call("Segment", request, deadline)), images)

    def classify_stream(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> AsyncIterator[tuple[int, Classification | ServerError]]:
        """As `Client.classify_stream`, for `async for`. `images` may be asynchronous; else the loop waits for each."""

        seconds = _seconds(deadline)

        def request(number: int, image: ImageSource) -> pb.ClassifyStreamRequest:
            asked = _classify_request(image, model, version, top_k, self._priority)
            return pb.ClassifyStreamRequest(id=number, request=asked, deadline_seconds=seconds)

        return self._stream("ClassifyStream", Sending(images, request), read_streamed_classification)

    def segment_stream(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> AsyncIterator[tuple[int, Segmentation | ServerError]]:
        """As `Client.segment_stream`, likewise."""

        seconds = _seconds(deadline)

        def request(number: int, image: ImageSource) -> pb.SegmentStreamRequest:
            asked = _segment_request(image, model, version, format, with_confidence, self._priority)
            return pb.SegmentStreamRequest(id=number, request=asked, deadline_seconds=seconds)

        return self._stream("SegmentStream", Sending(images, request), read_streamed_segmentation)

    async def models(self, deadline: float | None = None) -> list[Model]:
        """As `Client.models`."""
        return read_models(await self._call("ListModels", pb.ListModelsRequest(), deadline))

    async def _call(self, method: str, request: Message, deadline: float | None) -> Any:
        try:
            return await self._methods[method](request, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            raise read_error(error, self._target, deadline) from None

    async def _stream(
        self, method: str, sending: Sending[ImageSource], read: Callable[[Any], T]
    ) -> AsyncIterator[tuple[int, T]]:
        call = self._methods[method](aiter(sending))
        answered = 0
        try:
            async for message in call:
                answered += 1
                yield message.id, read(message)
        except grpc.aio.AioRpcError as error:
            raise read_error(error, self._target, None) from None
        finally:
            call.cancel()
        _check_complete(sending, answered, self._target)


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file. Raises BadImage, naming the file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImage(f"cannot read image {str(path)!r}: {error.strerror}") from None


def _methods(channel: Any) -> dict[str, Callable[..., Any]]:
    # Built from the schema, so that there are no generated method stubs to keep beside the messages.
    vision = pb.DESCRIPTOR.services_by_name["Vision"]
    return {
        method.name: (channel.stream_stream if method.client_streaming else channel.unary_unary)(
            f"/{vision.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        for method in vision.methods
    }


def _classify_request(
    images: ImageSource | Sequence[ImageSource], model: str, version: int, top_k: int, priority: Priority
) -> pb.ClassifyRequest:
    _check("version", version, _MAX_VERSION)
    _check("top_k", top_k, MAX_TOP_K)
    return pb.ClassifyRequest(
        model=model, version=version, images=_messages(images), top_k=top_k, priority=_PRIORITIES[priority]
    )


def _segment_request(
    images: ImageSource | Sequence[ImageSource],
    model: str,
    version: int,
    mask: MaskFormat,
    with_confidence: bool,
    priority: Priority,
) -> pb.SegmentRequest:
    _check("version", version, _MAX_VERSION)
    return pb.SegmentRequest(
        model=model,
        version=version,
        images=_messages(images),
        format=_FORMATS[mask],
        with_confidence=with_confidence,
        priority=_PRIORITIES[priority],
    )


def _check(name: str, value: int, largest: int) -> None:
    if not 0 <= value <= largest:
        raise BadRequest(f"{name} is {value}, want 0 to {largest}")


def _seconds(deadline: float | None) -> float:
    if deadline is not None and deadline <= 0:
        raise BadRequest(f"deadline is {deadline:g}, want more than 0 seconds")
    return deadline or 0  # a message's 0 is none


def _messages(images: ImageSource | Sequence[ImageSource]) -> list[pb.Image]:
    if isinstance(images, str | Path | bytes | np.ndarray):
        return [_message(images)]
    return [_message(image) for image in images]


def _message(image: ImageSource) -> pb.Image:
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    if isinstance(image, str | Path):
        return pb.Image(encoded=read_image(image))
    pixels = image[..., np.newaxis] if image.ndim == 2 else image
    if image.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise BadImage(f"array is {image.dtype} {image.shape}, want uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    height, width, channels = pixels.shape
    return pb.Image(
        raw=pb.RawImage(pixels=pixels.tobytes(), height_px=height, width_px=width, channels=channels),
    )


def _check_complete(sending: Sending[Any], answered: int, target: str) -> None:
    if sending.failure is not None:
        raise sending.failure
    if not sending.complete or answered < sending.sent:
        raise stream_ended(target, sending.sent - answered)


def _as_asked(results: list[T | ServerError], images: object) -> T | list[T | ServerError]:
    if not isinstance(images, str | Path | bytes | np.ndarray):
        return results
    result = results[0]
    if isinstance(result, ServerError):
        raise result
    return result
