"""A model of a running server or fleet that scores over a stream, at low priority: in the time that callers leave."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from convoy.service import address
from convoy.service.client.client import Client
from convoy.service.client.pictures import accepted
from convoy.service.client.results import Classification, Segmentation, ServerError
from convoy.service.client.results import Model as Served
from convoy.service.errors import BadConfig, BadImage, ConvoyError, ModelUnavailable, UnknownModel, meant
from convoy.service.frontend.postprocess import Ranking, segmentation
from convoy.service.metadata import Document, InputSpec, default_palette
from convoy.service.preprocess import Placement
from convoy.service.scoring.columns import FORMATS, Answer, Model
from convoy.service.scoring.score import Options, Read

PATIENCE = 300.0  # seconds without any answer, after which it is given up: longer than a fleet needs to be replaced
_READERS = 8  # threads that wait for disks and networks
_AHEAD = 32  # images that are read before the server accepts them
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds; where the server says how long, that counts

# The image is not at fault, and may be answered later; or the server will answer none of them.
_LATER = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_NEVER = ("NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")


class Fleet:
    """One version of a model on a server. All of a run is scored by that version, and says so in each row."""

    batch_size, provider = 0, ""
    weights: Mapping[str, str] = {}

    def __init__(self, name: str, target: str, options: Options) -> None:
        """Raises BadConfig, UnknownModel, ModelUnavailable, ServerError."""
        address.target(target)
        self._options = options
        self._client = Client(target, priority="low", credentials=options.credentials)
        served = _version(self._client.models(), name, options.version)
        self._name, self.version = name, served.version
        if served.task not in ("classification", "segmentation") or not served.input.colour:
            raise BadConfig(f"model {name!r} is not for classification or segmentation of images")
        self.model = Model(
            task="classification" if served.task == "classification" else "segmentation",
            labels=served.labels,
            palette=served.palette or _palette(served),
            identity={"model": name, "version": served.version},
        )
        self._readers = ThreadPoolExecutor(_READERS, "read")

    def answers(self, images: Iterable[Read]) -> Iterator[tuple[int, Answer]]:
        """See Backend. What a broken stream leaves, and what the server refuses, is sent again. Raises ServerError."""
        waiting = dict(enumerate(images))
        answered, wait, alone, not_before = time.monotonic(), _FIRST_WAIT, False, 0.0
        while waiting:
            sending = _Sending(dict(list(waiting.items())[: 1 if alone else None]), self._readers, not_before)
            failure: ServerError | None = None
            before = len(waiting)
            try:
                for number, answer in self._streamed(sending):
                    del waiting[number]
                    yield number, answer
            except ServerError as error:
                failure = error
            finally:
                sending.end()
            not_before = sending.not_before
            if len(waiting) < before:
                answered, wait, alone = time.monotonic(), _FIRST_WAIT, False
                continue
            if failure is not None and failure.code.name in _NEVER:
                raise failure
            if failure is not None and failure.code.name != "UNAVAILABLE" and alone:
                # This image ends its stream, such as one that is larger than the server accepts.
                number = next(iter(waiting))
                del waiting[number]
                yield number, failure
                continue
            if time.monotonic() - answered > PATIENCE:
                raise failure or sending.refusal or ModelUnavailable(f"no image was answered for {PATIENCE:g} seconds")
            alone = failure is not None
            threading.Event().wait(max(wait, failure.retry_after or 0 if failure is not None else 0))
            wait = min(2 * wait, _LONGEST_WAIT)

    def _streamed(self, sending: "_Sending") -> Iterator[tuple[int, Answer]]:
        """The answers of one stream, and the errors of images that were not sent. Those that the server refused for now
        have none. Raises ServerError."""
        for index, result in self._stream(sending):
            yield from sending.unreadable()
            number = sending.sent[index]
            if not isinstance(result, ServerError):
                yield number, self._answer(result)
            elif result.code.name in _NEVER:
                raise result
            elif result.code.name in _LATER:
                sending.pause(result)
            else:
                yield number, result
        yield from sending.unreadable()

    def _stream(self, images: "_Sending") -> Iterator[tuple[int, Classification | Segmentation | ServerError]]:
        if self.model.task == "classification":
            top_k = self._options.top_k
            yield from self._client.classify_stream(images, self._name, version=self.version, top_k=top_k)
        else:
            yield from self._client.segment_stream(images, self._name, version=self.version, format="rle")

    def _answer(self, result: Classification | Segmentation) -> Answer:
        if isinstance(result, Classification):
            return Ranking([each.index for each in result.labels], [each.probability for each in result.labels])
        height, width = result.mask.shape
        document = Document(
            task="segmentation",
            labels=list(self.model.labels),
            palette=list(self.model.palette),
            input=InputSpec(colour="RGB", fit="pad"),
        )
        placement = Placement(height, width, 0, 0, height, width)
        return segmentation(result.mask, None, document, placement, FORMATS[self._options.masks])


class _Sending:
    """The images of one stream, read ahead of the server. Its iterator runs in a thread of gRPC."""

    def __init__(self, images: Mapping[int, Read], readers: ThreadPoolExecutor, not_before: float) -> None:
        self.sent: list[int] = []  # the numbers of the images, in the order of the stream
        self.refusal: ServerError | None = None  # the latest
        self._images = images
        self._readers = readers
        self._unreadable: deque[tuple[int, ConvoyError | OSError]] = deque()
        self.not_before = not_before  # when the server has room, as far as it has said; also after this stream
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        reading: deque[tuple[int, Future[bytes | ConvoyError | OSError]]] = deque()
        left = iter(self._images.items())
        while not self._ended.is_set():
            while len(reading) < _AHEAD and (following := next(left, None)) is not None:
                reading.append((following[0], self._readers.submit(_read, following[1])))
            if not reading:
                return
            number, future = reading.popleft()
            data = future.result()
            if not isinstance(data, bytes):
                self._unreadable.append((number, data))
                continue
            self._ended.wait(max(0.0, self.not_before - time.monotonic()))
            self.sent.append(number)
            yield data

    def unreadable(self) -> Iterator[tuple[int, ConvoyError | OSError]]:
        """The images that could not be read since the last call, with their errors."""
        while self._unreadable:
            yield self._unreadable.popleft()

    def pause(self, refusal: ServerError) -> None:
        """Sends the next image when the server has room again."""
        self.refusal = refusal
        self.not_before = time.monotonic() + (refusal.retry_after or _FIRST_WAIT)

    def end(self) -> None:
        """Sends no more."""
        self._ended.set()


def _read(read: Read) -> bytes | ConvoyError | OSError:
    try:
        return accepted(read())
    except (BadImage, OSError) as error:
        return error


def _version(models: Sequence[Served], name: str, version: int) -> Served:
    """The version that serves, or the one that is wanted. Raises UnknownModel, ModelUnavailable."""
    found = [each for each in models if each.model == name]
    if not found:
        raise UnknownModel(f"the server has no model {name!r}{meant(name, sorted({each.model for each in models}))}")
    found = [each for each in found if version in (0, each.version)]
    if not found:
        raise UnknownModel(f"the server has no version {version} of model {name!r} any more")
    ready = [each for each in found if each.state == "ready"]
    if not ready:
        raise ModelUnavailable(f"model {name!r} is {found[0].state}: {found[0].reason or 'try again'}")
    return max(ready, key=lambda each: each.version)


def _palette(served: Served) -> tuple[tuple[int, int, int], ...]:
    return tuple(default_palette(len(served.labels))) if served.task == "segmentation" else ()
