"""The client for threads; the asyncio client has the same methods.

    with Client("127.0.0.1:8001") as client:
        best = client.classify("four.png").labels[0]
        print(best.name, best.probability)
        mask = client.segment(pixels, model="unet").mask  # (H, W) uint8, class indices

An image is a path, the bytes of an image file, a `PIL.Image.Image`, or uint8 pixels: (H, W) or (H, W, 1) grey, (H, W,
3) RGB, (H, W, 4) RGBA. JPEG and PNG files are sent as they are; other formats become PNG first. `classify` and
`segment` send one image and return its result or raise ServerError; `classify_many` and `segment_many` return a result
or a ServerError for each image. A `deadline` is the seconds in which the answer must arrive; the request contains it,
so the server does no work that would be late. Requests of a client with `priority` "low" run after those of other
clients, but do not wait forever.

A call that is UNAVAILABLE is repeated up to four times within its deadline, after growing waits or when the server
says so. Streams are not repeated, nor is any other error: to retry, wait `ServerError.retry_after` seconds and call
again.

A target is one server, such as `10.0.0.7:8001`, or several: all addresses of a name, `dns:///convoy.example:8001`, or a
list, `ipv4:10.0.0.7:8001,10.0.0.8:8001`. Of several, calls go to those in turn that say they serve.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from convoy.service import address
from convoy.service.client import large, tiling
from convoy.service.client.channel import ANY_REQUEST, KEEPALIVE, options
from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.large import LargeSegmentation, LargeSource, Progress
from convoy.service.client.requests import (
    ImageSource,
    MaskFormat,
    Priority,
    Sending,
    classify_request,
    classify_requests,
    methods,
    segment_request,
    segment_requests,
)
from convoy.service.client.results import (
    Classification,
    Model,
    Segmentation,
    ServerError,
    next_page,
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
from convoy.service.rasters.raster import MaskSink

T = TypeVar("T")


class Client:
    """Calls a server from threads; any number of them may share one client. Close it, or use it in `with`.

    retry               whether a call that is UNAVAILABLE is repeated
    retry_buffer_bytes  how large a request may be that is repeated; gRPC keeps it until the answer comes
    balance             whether the calls go to all servers of a target in turn; else to one, until it leaves
    health              whether a server gets calls only while its health service says that it serves. Needs `balance`.
                        gRPC asks without a token, so None means no for a client with one. A server without a health
                        service gets calls.
    keepalive           seconds of silence after which a server with a call is asked whether it is there: its machine
                        may be gone, which nobody says. Without a reply the call is UNAVAILABLE. 0: never
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        priority: Priority = "normal",
        retry: bool = True,
        retry_buffer_bytes: int = ANY_REQUEST,
        balance: bool = True,
        health: bool | None = None,
        keepalive: float = KEEPALIVE,
        credentials: Credentials = PLAIN,
    ) -> None:
        self._target = target = address.target(target)
        self._priority = priority
        metadata = credentials.metadata()
        found = options(
            target,
            retry=retry,
            retry_buffer_bytes=retry_buffer_bytes,
            balance=balance,
            health=not metadata if health is None else health,
            keepalive=keepalive,
        )
        self._channel = credentials.channel(target, found)
        self._methods = methods(self._channel, metadata)

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
        ends the stream, which runs on one server and ends with it: an image whose index has not been yielded has no
        answer, and may be sent again.
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

    def segment_large(
        self,
        picture: LargeSource,
        model: str = "",
        *,
        version: int = 0,
        tile: int = 0,
        halo: int | None = None,
        sink: MaskSink | None = None,
        first_row: int = 0,
        format: MaskFormat = "png",  # noqa: A002  the field's name
        progress: Callable[[Progress], None] | None = None,
        deadline: float | None = None,
    ) -> LargeSegmentation:
        """The class of every pixel of a picture of any size, cut into tiles, which a stream sends at low priority.

        `picture` is a path, uint8 pixels, or a Raster, which is read in windows. A tile contains, around the part that
        is used, as many real pixels as affect its classes; then the mask is that of the whole picture, and the result
        is `exact`. Of networks that pool over the whole picture no tile has that mask: there `halo` is a choice of
        pixels, and where tiles overlap, the more confident one wins.

        `tile` is the side of a tile in pixels, 0 a good one. The mask is returned as an array, or its rows are written
        to `sink`, which stays open; only those from `first_row` on. `progress` is called after each tile, in some
        thread. Tiles that are refused for now are sent again, and those without an answer where the stream breaks;
        `deadline` is for the list of models. Raises BadImage, BadRequest, UnknownModel, ServerError, OSError.
        """
        chosen = large.chosen(self.models(deadline), model, version)
        with large.as_raster(picture) as raster:
            plan = tiling.plan(raster.height, raster.width, chosen, tile, halo)
            job = large.Job(raster, plan, chosen, sink, first_row, progress)

            def stream(tiles: Iterable[ImageSource]) -> Iterator[tuple[int, Segmentation | ServerError]]:
                requests = segment_requests(tiles, chosen.model, chosen.version, format, plan.joined, "low", None)
                return self._stream("SegmentStream", requests, read_streamed_segmentation)

            return large.run(job, stream)

    def models(self, deadline: float | None = None) -> list[Model]:
        """Every version of every model on the server; for those it cannot serve, why. Raises ServerError."""
        listed: list[Model] = []
        request: pb.ListModelsRequest | None = pb.ListModelsRequest()
        while request is not None:
            response = self._call("ListModels", request, deadline)
            listed += read_models(response)
            request = next_page(response)
        return listed

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
