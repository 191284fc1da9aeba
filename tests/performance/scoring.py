"""`convoy score` on this machine, beside a loop over the same files with onnxruntime and nothing else."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from convoy.service import metadata
from convoy.service.machine import cores
from convoy.service.metadata import InputSpec
from convoy.service.scoring import local
from convoy.service.scoring.output import Asked
from convoy.service.scoring.score import Score
from tests.performance import models
from tests.performance.figure import Figure
from tests.performance.trials import in_turns, ratio
from tests.service.frontend.test_reduction import photograph

WANTED = 0.95
NETWORKS = {"mobilenet": 256, "resnet18": 128}  # and how many images a trial has
_SIZE = (360, 480)  # larger than the input, but not so much that decoding could be reduced
_TOP_K = 5


class Trial(NamedTuple):
    """What scoring all images took: seconds, and CPU seconds of all threads."""

    seconds: float
    cpu: float


class Unwatched:
    """Shows nothing."""

    def listed(self, images: int, complete: bool) -> None: ...

    def kept(self, images: int, failed: int) -> None: ...

    def scored(self, failed: bool) -> None: ...


def bulk(root: Path, pairs: int) -> list[Figure]:
    """Images a second, and CPU time, beside the faster of two loops that a user would write."""
    photos = root / "photos"
    photos.mkdir(parents=True)
    data = photograph(*_SIZE)
    for number in range(max(NETWORKS.values())):
        (photos / f"{number:04d}.jpg").write_bytes(data)
    return [line for name, count in NETWORKS.items() for line in beside_raw(root, photos, name, count, pairs)]


def beside_raw(root: Path, photos: Path, architecture: str, count: int, pairs: int) -> list[Figure]:
    """The lines of one network."""
    file = models.real(root / architecture, architecture)
    scorer = Score(str(file), top_k=_TOP_K, profiles=str(file.parent)).settled()
    batch = scorer.options.batch_size
    spec = _spec(file)
    asked = Asked(source=str(photos / f"0[0-{(count - 1) // 100}]*.jpg"))
    turn = iter(range(1000))

    def ours() -> Trial:
        return timed(lambda: local.run(scorer, root / f"{architecture}-{next(turn)}", asked, Unwatched()))

    files = sorted(photos.glob(f"0[0-{(count - 1) // 100}]*.jpg"))
    loops: list[Callable[[], Trial]] = [
        lambda: timed(lambda: one_session(whole, files, spec, batch)),
        lambda: timed(lambda: a_session_for_each_core(single, files, spec, batch)),
    ]
    whole, single = _session(file, 0), [_session(file, 1) for _ in range(cores())]
    ours()  # opens the model for this source
    raw = min(loops, key=lambda loop: min(loop().seconds for _ in range(2)))
    mine: list[Trial] = []
    theirs: list[Trial] = []
    in_turns(_kept(ours, mine), _kept(raw, theirs), pairs)
    rates = ratio([each.seconds for each in theirs[1:]], [each.seconds for each in mine[1:]])
    cpu = ratio([each.cpu for each in mine[1:]], [each.cpu for each in theirs[1:]])
    images = f"{len(files) / float(np.median([each.seconds for each in mine[1:]])):.0f} images/s"
    of = f"{architecture}, JPEG of {_SIZE[1]}x{_SIZE[0]}, batches of {batch}"
    return [
        Figure(
            "score",
            f"Images a second of `convoy score`, divided by those of onnxruntime in a loop that decodes too: {of}",
            f">= {WANTED}",
            f"{rates}; {images}",
            rates.median >= WANTED,
        ),
        Figure("score", f"The same, CPU time divided by that of the loop: {of}", "", str(cpu), None),
    ]


def one_session(
    session: onnxruntime.InferenceSession, files: Sequence[Path], spec: InputSpec, batch: int
) -> list[list[int]]:
    """A session with all cores; the next batches are decoded in threads meanwhile."""
    with ThreadPoolExecutor(cores()) as threads:
        return [row for images in _decoded(threads, files, spec, batch) for row in _best(session, np.stack(images))]


def a_session_for_each_core(
    sessions: Sequence[onnxruntime.InferenceSession], files: Sequence[Path], spec: InputSpec, batch: int
) -> list[list[int]]:
    """Sessions with one thread each; each of as many threads decodes its own batches and runs them."""
    free = deque(sessions)

    def score(part: Sequence[Path]) -> list[list[int]]:
        session = free.popleft()
        try:
            return _best(session, np.stack([_pixels(each, spec) for each in part]))
        finally:
            free.append(session)

    with ThreadPoolExecutor(cores()) as threads:
        parts = [files[first : first + batch] for first in range(0, len(files), batch)]
        return [row for rows in threads.map(score, parts) for row in rows]


def timed(work: Callable[[], Any]) -> Trial:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return Trial(time.perf_counter() - began, time.process_time() - cpu)


def _kept(trial: Callable[[], Trial], found: list[Trial]) -> Callable[[], float]:
    def one() -> float:
        found.append(trial())
        return found[-1].seconds

    return one


def _decoded(
    threads: ThreadPoolExecutor, files: Sequence[Path], spec: InputSpec, batch: int
) -> Iterator[list[NDArray[np.uint8]]]:
    ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
    for first in range(0, len(files), batch):
        ahead.append([threads.submit(_pixels, each, spec) for each in files[first : first + batch]])
        if len(ahead) > 2:
            yield [each.result() for each in ahead.popleft()]
    while ahead:
        yield [each.result() for each in ahead.popleft()]


def _pixels(file: Path, spec: InputSpec) -> NDArray[np.uint8]:
    assert spec.height is not None
    assert spec.width is not None
    pixels = simplejpeg.decode_jpeg(file.read_bytes(), "RGB")
    return np.asarray(Image.fromarray(pixels).resize((spec.width, spec.height), Image.Resampling.BILINEAR))


def _best(session: onnxruntime.InferenceSession, images: NDArray[np.uint8]) -> list[list[int]]:
    (probabilities,) = session.run(["probabilities"], {"image": images})
    return [np.argsort(-row)[:_TOP_K].tolist() for row in probabilities]


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _spec(file: Path) -> InputSpec:
    document = metadata.decode(_session(file, 1).get_modelmeta().custom_metadata_map)
    assert document is not None
    return document.image
