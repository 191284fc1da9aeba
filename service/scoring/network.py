"""A model file that scores in this process: what a server does to an image, without one.

Images are read, decoded and fitted in threads, run in batches by the file's sessions, and their answers are made in
threads again. Every step is the server's own code. All of the codecs, of resizing and of onnxruntime release the GIL.
"""

import hashlib
import itertools
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from convoy.service import repository
from convoy.service.client.pictures import accepted
from convoy.service.config import MIB, BatchingConfig, Config, EngineConfig, LimitsConfig, ModelConfig
from convoy.service.engine import session_builder
from convoy.service.engine.instances import Instance
from convoy.service.engine.profiling import largest_batch
from convoy.service.engine.providers import GPU, gpu_offered
from convoy.service.engine.session import DeviceLost, beside
from convoy.service.errors import BadConfig, BadModelFile, ConvoyError, RunFailed, runtime_reason
from convoy.service.frontend.postprocess import rankings, segmentation
from convoy.service.machine import cores
from convoy.service.metadata import MASK, PROBABILITIES, Document, default_palette
from convoy.service.preprocess import Placement, input_size, preprocess
from convoy.service.repository import PROFILE_FILE
from convoy.service.scoring.columns import FORMATS, Answer, Model
from convoy.service.scoring.score import Options, Read
from convoy.service.scoring.suspects import decoder

_READERS = 8  # threads that wait for disks and networks
_MOST_SESSIONS = 16  # each has its own copy of the weights
_AHEAD = 4  # batches whose images are read and decoded while others run, for each session
_HELD = 256 * MIB  # of decoded pixels that wait for a batch, or for their turn
_LIMITS = LimitsConfig()  # a server's defaults
_HOUR_MS = 3_600_000  # nobody waits for one image: only throughput counts

Pixels = NDArray[np.uint8]


class _Fitted(NamedTuple):
    pixels: Pixels  # (h, w, C), the input of the network
    placement: Placement


_Fit = _Fitted | ConvoyError | OSError
_Output = NDArray[np.generic] | RunFailed


class Network:
    """The sessions of a file, and the threads around them."""

    version = 0

    def __init__(self, file: Path, options: Options) -> None:
        """Raises BadConfig, BadModelFile, BadMetadata."""
        stamp = _stamp(file)
        self._options = options
        with tempfile.TemporaryDirectory(prefix="convoy-") as temporary:
            folder = Path(options.profiles or temporary)
            if not (folder / PROFILE_FILE).exists() and file.with_name(PROFILE_FILE).exists():
                shutil.copyfile(file.with_name(PROFILE_FILE), folder / PROFILE_FILE)
            loaded = session_builder.load(file.absolute(), stamp, _config(options), ModelConfig(), folder)
        self._document = _document(file, loaded.session.document)
        self._instances = loaded.instances
        self._names = [spec.name for spec in loaded.session.outputs]
        most = max((profile.batch_size for profile in loaded.profiles), default=loaded.limits.max_batch_size)
        self.batch_size = options.batch_size or most
        self.provider: str = loaded.session.provider
        self.weights: Mapping[str, str] = (
            {each.name: sha256(each) for each in beside(file)} if loaded.session.data else {}
        )
        self._copies = self.provider in GPU  # of outputs, whose memory the next run uses
        classes = len(self._document.labels)
        self.model = Model(
            task="classification" if self._document.task == "classification" else "segmentation",
            labels=tuple(self._document.labels),
            palette=tuple(self._document.palette or (default_palette(classes) if self._segments else ())),
            identity={"sha256": sha256(file)},
        )
        self._choosing = threading.Lock()  # guards the numbers of running batches
        self._decoder = decoder(options.profiles)
        self._numbers = itertools.count()
        self._thread = threading.local()
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._workers = ThreadPoolExecutor(max(2, options.threads or cores()), "decode")

    def answers(self, images: Iterable[Read]) -> Iterator[tuple[int, Answer]]:
        """See Backend. A batch has images of one size, in their order; which share it does not depend on time."""
        most = 2 * len(self._instances)
        running: deque[tuple[list[int], Future[list[Future[Answer]]]]] = deque()
        for numbers, inputs in _batches(self._fitted(images), self._most):
            if isinstance(inputs, ConvoyError | OSError):
                yield numbers[0], inputs
                continue
            running.append((numbers, self._start(inputs)))
            while running and (len(running) > most or _is_done(running[0][1])):
                yield from _finish(*running.popleft())
        while running:
            yield from _finish(*running.popleft())

    @property
    def _segments(self) -> bool:
        return self._document.task == "segmentation"

    def _most(self, shape: tuple[int, ...]) -> int:
        """The images in a batch of one input shape."""
        return largest_batch(self._document, shape, self.batch_size, BatchingConfig().max_batch_pixels)

    def _fitted(self, images: Iterable[Read]) -> Iterator[_Fit]:
        """The inputs of images, in order; they are prepared ahead of their turn, as far as memory allows."""
        ahead = max(16, _AHEAD * self.batch_size * len(self._instances))
        waiting: deque[Future[_Fit]] = deque()
        for read in images:
            waiting.append(self._workers.submit(self._fit, self._readers.submit(read)))
            while len(waiting) >= ahead or (self._document.takes.free and _done_bytes(waiting) > _HELD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _fit(self, read: Future[bytes]) -> _Fit:
        spec = self._document.image
        # As in a server: a network of any size runs the image as it is.
        max_pixels = min(_LIMITS.max_pixels, _LIMITS.max_input_pixels) if spec.fit == "pad" else _LIMITS.max_pixels
        try:
            data = accepted(read.result())
            picture = self._decoder.decode(data, spec, max_pixels, self._number())
        except (ConvoyError, OSError) as error:
            return _without_origin(error)
        inputs = np.empty((*input_size(spec, picture.height, picture.width), spec.channels), np.uint8)
        return _Fitted(inputs, preprocess(picture.pixels, spec, inputs, (picture.height, picture.width)))

    def _number(self) -> int:
        """The number of this thread among those that decode."""
        if not hasattr(self._thread, "number"):
            self._thread.number = next(self._numbers)
        number: int = self._thread.number
        return number

    def _start(self, inputs: Sequence[_Fitted]) -> Future[list[Future[Answer]]]:
        with self._choosing:
            instance = self._instances.reserve()
        return instance.submit(self._run, instance, inputs)

    def _run(self, instance: Instance, inputs: Sequence[_Fitted]) -> list[Future[Answer]]:
        """Runs a batch in its session's thread, and leaves the rest to the workers."""
        try:
            outputs = self._outputs(instance, np.stack([each.pixels for each in inputs]))
        finally:
            with self._choosing:
                instance.running -= 1
        placements = [each.placement for each in inputs]
        return [self._workers.submit(self._answer, output, at) for output, at in zip(outputs, placements, strict=True)]

    def _outputs(self, instance: Instance, batch: Pixels) -> list[_Output]:
        """The output of each image. Of a batch that fails, only those images fail that fail alone."""
        try:
            outputs = instance.session.run([batch])
        except DeviceLost:
            raise
        except Exception as error:  # onnxruntime's errors share no base class
            if len(batch) == 1:
                return [RunFailed(f"the network failed: {runtime_reason(error)}")]
            return [self._outputs(instance, batch[number : number + 1])[0] for number in range(len(batch))]
        output = outputs[self._names.index(MASK if self._segments else PROBABILITIES)]
        return list(output.copy() if self._copies else output)

    def _answer(self, output: _Output, placement: Placement) -> Answer:
        if isinstance(output, RunFailed):
            return output
        document = self._document
        try:
            if self._segments:
                mask = output.astype(np.uint8, copy=False)
                return segmentation(mask, None, document, placement, FORMATS[self._options.masks])
            probabilities = output.astype(np.float32, copy=False)[np.newaxis]
            return rankings(probabilities, len(document.labels), self._options.top_k)[0]
        except RunFailed as error:
            return error


def sha256(file: Path) -> str:
    """The digest of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _stamp(file: Path) -> repository.Stamp:
    if file.is_dir():
        raise BadConfig(f"model {str(file)!r} is a folder, want the .onnx file in it")
    stamp = repository.stamp(file)
    if stamp is None:
        raise BadConfig(f"model {str(file)!r} does not exist, want an .onnx file, or NAME@HOST:PORT")
    return stamp


def _config(options: Options) -> Config:
    if options.provider not in ("auto", "cpu", "cuda"):
        raise BadConfig(f"provider is {options.provider!r}, want auto, cpu or cuda")
    provider = cast(Literal["auto", "cpu", "cuda"], options.provider)
    # Sessions with one thread each never wait for one another: a fifth less CPU time with ResNet-18 on two cores.
    sessions = 1 if gpu_offered(provider) else min(options.threads or cores(), _MOST_SESSIONS)
    engine = EngineConfig(provider=provider, device=options.device, threads=options.threads, instances=sessions)
    # A network of any size is measured at a usual one, to choose its batch size.
    return Config(engine=engine, batching=BatchingConfig(latency_objective_ms=_HOUR_MS, buckets="auto"))


def _document(file: Path, document: Document | None) -> Document:
    if document is None:
        raise BadModelFile(f"{str(file)!r} does not describe itself: convoy adopt writes what it lacks")
    if document.input is None or document.task == "matching":
        what = "templates in pictures" if document.task == "matching" else "tensors that are no images"
        raise BadModelFile(f"{str(file)!r} is for {what}, want classification or segmentation of images")
    return document


def _batches(
    fitted: Iterable[_Fit], most: Callable[[tuple[int, ...]], int]
) -> Iterator[tuple[list[int], list[_Fitted] | ConvoyError | OSError]]:
    """Groups inputs of one shape into batches; yields each with the numbers of its images, and errors by themselves."""
    open_batches: dict[tuple[int, ...], tuple[list[int], list[_Fitted]]] = {}
    held = 0
    for number, each in enumerate(fitted):
        if not isinstance(each, _Fitted):
            yield [number], each
            continue
        shape = each.pixels.shape
        numbers, inputs = open_batches.setdefault(shape, ([], []))
        numbers.append(number)
        inputs.append(each)
        held += each.pixels.nbytes
        if len(inputs) == most(shape):
            held -= len(inputs) * each.pixels.nbytes
            yield open_batches.pop(shape)
        elif held > _HELD:  # many sizes: this, too, depends on the images alone
            yield from open_batches.values()
            open_batches.clear()
            held = 0
    yield from open_batches.values()


def _done_bytes(waiting: Iterable[Future[_Fit]]) -> int:
    results = [each.result() for each in waiting if each.done()]
    return sum(each.pixels.nbytes for each in results if isinstance(each, _Fitted))


def _is_done(run: Future[list[Future[Answer]]]) -> bool:
    return run.done() and (run.exception() is not None or all(each.done() for each in run.result()))


def _finish(numbers: Sequence[int], run: Future[list[Future[Answer]]]) -> Iterator[tuple[int, Answer]]:
    for number, answer in zip(numbers, run.result(), strict=True):
        yield number, answer.result()


def _without_origin(error: ConvoyError | OSError) -> ConvoyError | OSError:
    """The error without references to the bytes of its image."""
    if isinstance(error, ConvoyError):
        error.forget_origin()
    else:
        error.__traceback__ = error.__context__ = None
    return error
