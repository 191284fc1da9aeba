"""Accuracy and speed of several graphs of one network, measured in one run."""

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
from convoy.models.data.batches import Batch, loader
from convoy.models.data.builtin.generated import generated
from convoy.models.evaluation.metrics import measures
from convoy.models.runtime import CPU, Session
from convoy.service.metadata import Precision, Task

BATCH_SIZE = 16
BATCHES = (1, 2, 4, 8, 16, 32)  # batch sizes that are timed
MAX_NUMBERS = 8 << 20  # per timed batch, pixels times channels; about the default limit in serving
SIZE_SECONDS = 1.5  # for the runs of one batch size, over all graphs
MIN_ROUNDS, MAX_ROUNDS = 3, 31

Graphs = Mapping[Precision, onnx.ModelProto]
Sessions = Mapping[Precision, Session]


class Quality(NamedTuple):
    """Accuracy of a graph. `scores` by name, 0..1, empty without data. `agreement` is the share of images or pixels
    with the same prediction as fp32; `difference` the largest of any probability or confidence, 0..1."""

    images: int
    scores: dict[str, float]
    agreement: float
    difference: float


def sessions(graphs: Graphs) -> dict[Precision, Session]:
    """Opens the sessions on CUDA, if onnxruntime has it, else on the CPU, as a server does."""
    return {precision: runtime.session(graph, runtime.providers()) for precision, graph in graphs.items()}


def qualities(running: Sessions, description: Description) -> dict[Precision, Quality]:
    """Returns each graph's accuracy compared with fp32, over the whole held-out split, or over generated images if the
    weights have no data."""
    tallies = {precision: _Tally(description) for precision in running}
    for images, targets in _batches(description):
        reference = None
        for precision, session in running.items():
            outputs = session.run(None, {description.as_tensor.name: images.numpy()})
            reference = outputs if reference is None else reference
            tallies[precision].add(outputs, reference, targets)
    return {precision: tally.quality() for precision, tally in tallies.items()}


def image_times(running: Sessions, description: Description) -> dict[Precision, dict[int, float]]:
    """Returns median milliseconds per image by batch size. The graphs run in turns, so a slow moment affects all."""
    first = next(iter(_batches(description))).images[:1].numpy()
    sizes = [size for size in BATCHES if size == 1 or size * first.size <= MAX_NUMBERS]
    times: dict[Precision, dict[int, float]] = {precision: {} for precision in running}
    for size in sizes:
        inputs = {description.as_tensor.name: np.repeat(first, size, axis=0)}
        for precision, spans in _spans(running, inputs).items():
            times[precision][size] = 1000 * statistics.median(spans) / size
    return times


def processor(running: Sessions) -> str:
    """Returns the CPU that the sessions run on, such as "AMD EPYC, 2 threads"; empty if they do not run on a CPU."""
    if provider(running) != CPU:
        return ""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {torch.get_num_threads()} threads"


def provider(running: Sessions) -> str:
    """Returns the sessions' provider."""
    name: str = next(iter(running.values())).get_providers()[0]
    return name


class _Tally:
    """Accumulates the outputs of one graph."""

    def __init__(self, description: Description) -> None:
        self.task: Task = description.task
        self.scores = measures(description.task, len(description.labels)) if description.data else None
        self.images = self.same = self.predictions = 0
        self.difference = 0.0

    def add(self, outputs: list[NDArray[Any]], reference: list[NDArray[Any]], targets: torch.Tensor) -> None:
        predictions = _predictions(self.task, outputs[0])
        self.images += len(targets)
        self.predictions += predictions.size
        self.same += int((predictions == _predictions(self.task, reference[0])).sum())
        # numpy's max propagates NaN.
        self.difference = float(np.max([self.difference, np.abs(_shares(outputs) - _shares(reference)).max()]))
        if self.scores is not None:
            first = outputs[0] if self.task == "classification" else outputs[0].astype(np.int64)
            self.scores.update(torch.from_numpy(first), targets)

    def quality(self) -> Quality:
        scores = {} if self.scores is None else self.scores.compute()
        return Quality(
            self.images,
            {name: float(value) for name, value in scores.items()},
            self.same / self.predictions,
            self.difference,
        )


def _predictions(task: Task, first: NDArray[Any]) -> NDArray[Any]:
    return first.argmax(axis=1) if task == "classification" else first


def _shares(outputs: list[NDArray[Any]]) -> NDArray[Any]:
    # Probabilities, or confidences in steps of 1/255.
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
    # A session's first run of a size also allocates.
    return {precision: seconds[1:] for precision, seconds in spans.items()}


def _rounds() -> Iterator[int]:
    start = time.perf_counter()
    for count in range(MAX_ROUNDS + 1):
        if count > MIN_ROUNDS and time.perf_counter() - start > SIZE_SECONDS:
            return
        yield count
