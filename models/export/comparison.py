"""Several graphs of one network beside each other, in one run: how good their answers are, and how long they take."""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from convoy.models import runtime
from convoy.models.checkpoint import Description
from convoy.models.data.batches import loader
from convoy.models.data.builtin.generated import generated
from convoy.models.data.loading import Batch
from convoy.models.evaluation.metrics import measures
from convoy.models.runtime import CPU, Session
from convoy.service.metadata import Precision, Task

BATCH_SIZE = 16
BATCHES = (1, 2, 4, 8, 16, 32)  # that are timed
MOST_NUMBERS = 8 << 20  # in a batch that is timed, pixels times channels; what serving takes by default is about that
SIZE_SECONDS = 1.5  # for the runs of one batch size, of all graphs together
FEWEST_ROUNDS, MOST_ROUNDS = 3, 31

Graphs = Mapping[Precision, onnx.ModelProto]
Sessions = Mapping[Precision, Session]


class Quality(NamedTuple):
    """How a graph answers. `scores` by name, 0..1, empty without data; `agreement` is the share of fp32's answers, that
    is images or pixels, that it gives too, `difference` the largest of any probability or confidence, 0..1."""

    images: int
    scores: dict[str, float]
    agreement: float
    difference: float


def sessions(graphs: Graphs) -> dict[Precision, Session]:
    """On CUDA where onnxruntime has it, else on the CPU, with what a server uses."""
    return {precision: runtime.session(graph, runtime.providers()) for precision, graph in graphs.items()}


def qualities(running: Sessions, description: Description) -> dict[Precision, Quality]:
    """Each beside fp32, over the whole held-out split, or generated images where the weights came without data."""
    tallies = {precision: _Tally(description) for precision in running}
    for images, targets in _batches(description):
        reference = None
        for precision, session in running.items():
            outputs = session.run(None, {description.takes.name: images.numpy()})
            reference = outputs if reference is None else reference
            tallies[precision].add(outputs, reference, targets)
    return {precision: tally.quality() for precision, tally in tallies.items()}


def image_times(running: Sessions, description: Description) -> dict[Precision, dict[int, float]]:
    """Milliseconds an image in batches of each size, medians; run in turns, so that a slow moment is nobody's alone."""
    first = next(iter(_batches(description))).images[:1].numpy()
    sizes = [size for size in BATCHES if size == 1 or size * first.size <= MOST_NUMBERS]
    times: dict[Precision, dict[int, float]] = {precision: {} for precision in running}
    for size in sizes:
        inputs = {description.takes.name: np.repeat(first, size, axis=0)}
        for precision, spans in _spans(running, inputs).items():
            times[precision][size] = 1000 * statistics.median(spans) / size
    return times


def processor(running: Sessions) -> str:
    """What the sessions compute with where that is the CPU, such as "AMD EPYC, 2 threads"; else empty."""
    if provider(running) != CPU:
        return ""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {_threads()} threads"


def provider(running: Sessions) -> str:
    """The provider that the sessions run on."""
    name: str = next(iter(running.values())).get_providers()[0]
    return name


class _Tally:
    """Adds up the answers of one graph."""

    def __init__(self, description: Description) -> None:
        self.task: Task = description.task
        self.scores = measures(description.task, len(description.labels)) if description.data else None
        self.images = self.same = self.answers = 0
        self.difference = 0.0

    def add(self, outputs: list[NDArray[Any]], reference: list[NDArray[Any]], targets: torch.Tensor) -> None:
        answers = _answers(self.task, outputs[0])
        self.images += len(targets)
        self.answers += answers.size
        self.same += int((answers == _answers(self.task, reference[0])).sum())
        # numpy's max keeps a NaN.
        self.difference = float(np.max([self.difference, np.abs(_shares(outputs) - _shares(reference)).max()]))
        if self.scores is not None:
            given = outputs[0] if self.task == "classification" else outputs[0].astype(np.int64)
            self.scores.update(torch.from_numpy(given), targets)

    def quality(self) -> Quality:
        scores = {} if self.scores is None else self.scores.compute()
        return Quality(
            self.images,
            {name: float(value) for name, value in scores.items()},
            self.same / self.answers,
            self.difference,
        )


def _answers(task: Task, first: NDArray[Any]) -> NDArray[Any]:
    return first.argmax(axis=1) if task == "classification" else first


def _shares(outputs: list[NDArray[Any]]) -> NDArray[Any]:
    # Probabilities, or confidences in steps of 255.
    last = outputs[-1].astype(np.float32)
    return last / 255 if outputs[-1].dtype == np.uint8 else last


def _batches(description: Description) -> Iterable[Batch]:
    split = description.held_out() if description.data else generated(description.spec)
    return loader(split, description.spec, BATCH_SIZE)


def _spans(running: Sessions, inputs: dict[str, NDArray[Any]]) -> dict[Precision, list[float]]:
    spans: dict[Precision, list[float]] = {precision: [] for precision in running}
    for _ in _rounds():
        for precision, session in running.items():
            start = time.perf_counter()
            session.run(None, inputs)
            spans[precision].append(time.perf_counter() - start)
    # A session's first run of a size is not like the others: it allocates.
    return {precision: taken[1:] for precision, taken in spans.items()}


def _rounds() -> Iterator[int]:
    start = time.perf_counter()
    for count in range(MOST_ROUNDS + 1):
        if count > FEWEST_ROUNDS and time.perf_counter() - start > SIZE_SECONDS:
            return
        yield count


def _threads() -> int:
    return torch.get_num_threads()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
