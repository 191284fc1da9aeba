"""The client for threads; the asyncio client has the same methods.

    with Client("127.0.0.1:8001") as client:
        best = client.classify("four.png").labels[0]
        print(best.name, best.probability)
        mask = client.segment(pixels, model="unet").mask  # (H, W) uint8, class indices

An image is a path, the bytes of a JPEG or PNG file, or uint8 pixels: (H, W) or (H, W, 1) grey, (H, W, 3) RGB, (H, W, 4)
RGBA. `classify` and `segment` send one image and return its result or raise ServerError; `classify_many` and
`segment_many` return a result or a ServerError for each image. A `deadline` is the seconds in which the answer must
arrive; the request contains it, so the server does no work that would be late. Requests of a client with `priority`
"low" run after those of other clients, but do not wait forever.

A call that is UNAVAILABLE is repeated up to four times within its deadline, after growing waits or when the server says
so; `retry` False turns that off. Streams are not repeated, nor is any other error: to retry, wait
`ServerError.retry_after` seconds and call again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.requests import (
    ImageSource,
    MaskFormat,
    Priority,
    Sending,
    classify_request,
    classify_requests,
    methods,
    options,
    segment_request,
    segment_requests,
)
from convoy.service.client.results import (
    Classification,
    Model,
    Segmentation,
    ServerError,
    read_classifications,
    read_error,
    read_models,
    read_segmentations,
    read_streamed_classification,
    read_streamed_segmentation,
    single,
)
from convoy.service.config import DEFAULT_TARGET
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

T = TypeVar("T")


class Client:
    """Calls a server from threads; any number of them may share one client. Close it, or use it in `with`."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        priority: Priority = "normal",
        retry: bool = True,
        credentials: Credentials = PLAIN,
    ) -> None:
        self._target = target
        self._priority = priority
        self._channel = credentials.channel(target, options(retry=retry))
        self._methods = methods(self._channel, credentials.metadata())

    def close(self) -> None:
        """Close the connection; pending calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def classify(
        self, image: ImageSource, model: str = "", *, version: int = 0, top_k: int = 5, deadline: float | None = None
    ) -> Classification:
        """The `top_k` most probable labels of one image.

        `model` may be empty if the server has one classification model; `version` 0 is the one that serves. Raises
        BadImage for a file that cannot be read or an array that is not an image, BadRequest for a `version` or `top_k`
        out of range, ServerError.
        """
        return single(self.classify_many([image], model, version=version, top_k=top_k, deadline=deadline))

    def classify_many(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> list[Classification | ServerError]:
        """The labels of several images in one request: for each a result, or the error of that image alone.

        Raises as `classify`; ServerError only if the whole request failed.
        """
        request = classify_request(images, model, version, top_k, self._priority)
        return read_classifications(self._call("Classify", request, deadline))

    def segment(
        self,
        image: ImageSource,
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> Segmentation:
        """The class of every pixel of one image.

        `with_confidence` adds the probability of each pixel's class; a network without a confidence output refuses it.
        `format` is the wire format of masks, with the same result: `raw` costs the server least, `png` and `rle` are
        smaller. Otherwise as `classify`.
        """
        results = self.segment_many(
            [image], model, version=version, format=format, with_confidence=with_confidence, deadline=deadline
        )
        return single(results)

    def segment_many(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        format: MaskFormat = "raw",  # noqa: A002  the field's name
        with_confidence: bool = False,
        deadline: float | None = None,
    ) -> list[Segmentation | ServerError]:
        """The class maps of several images in one request: `segment`, in the form of `classify_many`."""
        request = segment_request(images, model, version, format, with_confidence, self._priority)
        return read_segmentations(self._call("Segment", request, deadline))

    def classify_stream(
        self,
        images: Iterable[ImageSource],
        model: str = "",
        *,
        version: int = 0,
        top_k: int = 5,
        deadline: float | None = None,
    ) -> Iterator[tuple[int, Classification | ServerError]]:
        """The labels of any number of images over one stream, each as soon as it is done.

        Yields the index in `images`, and the result or the error of that image. Images are read from `images` while
        answers arrive, as fast as the server accepts them. `deadline` applies to each image, from its arrival at the
        server. Raises BadImage and BadRequest as `classify`, once earlier images are answered. A raised ServerError
        ends the stream: images without a result by then get none.
        """
        requests = classify_requests(images, model, version, top_k, self._priority, deadline)
        return self._stream("ClassifyStream", requests, read_streamed_classification)

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
        """The class maps of any number of images over one stream: `segment`, in the form of `classify_stream`."""
        requests = segment_requests(images, model, version, format, with_confidence, self._priority, deadline)
        return self._stream("SegmentStream", requests, read_streamed_segmentation)

    def models(self, deadline: float | None = None) -> list[Model]:
        """Every version of every model on the server; for those it cannot serve, why. Raises ServerError."""
        return read_models(self._call("ListModels", pb.ListModelsRequest(), deadline))

    def _call(self, method: str, request: Message, deadline: float | None) -> Any:
        try:
            return self._methods[method](request, timeout=deadline)
        except grpc.RpcError as error:
            raise read_error(error, self._target, deadline) from None

    def _stream(self, method: str, requests: Sending, read: Callable[[Any], T]) -> Iterator[tuple[int, T]]:
        call = self._methods[method](iter(requests))
        answered = 0
        try:
            for message in call:
                answered += 1
                yield message.id, read(message)
        except grpc.RpcError as error:
            raise read_error(error, self._target, None) from None
        finally:
            call.cancel()  # in case the caller stops reading
        requests.check_complete(answered, self._target)
