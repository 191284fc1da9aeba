"""`python -m tests.performance.gpu FILE`: what serving costs on a GPU, beside onnxruntime alone on the same one."""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from convoy.service.bench.arrivals import gaps
from convoy.service.config import EngineConfig
from convoy.service.engine import profiles
from convoy.service.engine.buffers import Buffer, page_lock
from convoy.service.engine.providers import CPU, CUDA, Device, preload, providers
from convoy.service.errors import ConvoyError
from tests.performance import load
from tests.performance.device import Watch, hidden, mixed_sizes, parity
from tests.performance.figure import CLASSIFY, SEGMENT, Figure, request, scenes, serving
from tests.performance.report import machine, table
from tests.performance.trials import Ratio, in_turns, ratio

IMAGES = 16  # of one request
SCENES = 4  # the same, of the larger images for segmentation
SCENE_CLASSES = 21
LOAD = 0.8  # of what was served in a closed loop
WANTED = {"ratio": 0.90, "p99": 0.015}


@dataclass(frozen=True)
class Bench:
    """What is measured on, and how long: `trial` are the seconds of one trial."""

    provider: str
    clients: int
    pairs: int
    trial: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="images of a batch")
    parser.add_argument("--segmenter", default="unet")
    parser.add_argument("--side", type=int, default=512, help="pixels, of the images for segmentation")
    parser.add_argument("--scenes", type=int, nargs="+", default=[8, 16], help="images of a batch for segmentation")
    parser.add_argument("--mixed", type=int, default=10_000, help="images of mixed sizes, to see the memory they take")
    parser.add_argument("--clients", type=int, default=6, help="processes")
    parser.add_argument("--pairs", type=int, default=7, help="trials of each in turns")
    parser.add_argument("--trial", type=float, default=3.0, help="seconds of one trial")
    given = parser.parse_args(arguments)
    preload()
    if given.provider == "cuda" and CUDA not in onnxruntime.get_available_providers():
        print("no GPU is measured: this onnxruntime does not offer CUDA", file=sys.stderr)
        return 2
    bench = Bench(given.provider, given.clients, given.pairs, given.trial)
    from tests.performance import models  # not above: each client process imports this module, and torch is large

    lines: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        half, single, scene = (Path(folder) / name / "repository" for name in ("half", "single", "scene"))
        for root in (half, single, scene):
            root.parent.mkdir()
        file = models.half(half, given.architecture)
        try:
            raw = Raw(file, given.provider)
        except ConvoyError as error:
            print(f"no GPU is measured: {error.message}", file=sys.stderr)
            return 2
        classify = Work(f"{given.architecture}, half precision", CLASSIFY, raw.request(IMAGES), IMAGES)
        for size in given.sizes:
            lines += served(file, raw, classify, size, bench)
        lines += lone(file, raw, bench)
        full = models.real(single, given.architecture)
        classify = classify._replace(what=f"{given.architecture}, single precision")
        lines += served(full, Raw(full, given.provider), classify, given.sizes[0], bench)
        segmenter = models.half(scene, given.segmenter, SCENE_CLASSES)
        what = f"{given.segmenter}, half precision, images of {given.side}x{given.side}"
        segment = Work(what, SEGMENT, scenes(given.side, SCENES), SCENES)
        for size in given.scenes:
            lines += served(segmenter, Raw(segmenter, given.provider, given.side), segment, size, bench)
        lines += [mixed_sizes(segmenter, given.provider, given.mixed, given.side), parity(full, given.provider)]
        if given.provider == "cuda":
            lines.append(hidden(half))
        name = profiles.machine(file, CUDA if given.provider == "cuda" else CPU, 0, 0).device
    text = "## On a GPU\n\n" if given.provider == "cuda" else "## On the CPU, to try the program\n\n"
    given.file.write_text(f"{text}{name}; {machine()}\n\n{table(lines)}", encoding="utf-8")
    return 0


class Work(NamedTuple):
    """What callers ask for: a request of so many images."""

    what: str
    method: str
    body: bytes
    images: int


class Raw:
    """onnxruntime alone with IO binding, from page-locked memory of the host to memory of the host; `side` is that of
    the images, where the network takes any."""

    def __init__(self, file: Path, provider: str, side: int | None = None) -> None:
        chosen = providers(Device(provider, EngineConfig()), file)
        self._session = onnxruntime.InferenceSession(str(file), providers=chosen)
        if provider == "cuda" and self._session.get_providers()[0] != CUDA:
            raise ConvoyError("no CUDA device could be used")
        pin = page_lock(0) if provider == "cuda" else None
        self._given, self._found = Buffer(pin), Buffer(pin)
        self._spec = self._session.get_inputs()[0]
        self._shape = [given if isinstance(given, int) else side for given in self._spec.shape[1:]]
        self._binding = self._session.io_binding()

    def request(self, images: int) -> bytes:
        """To the server, of so many raw images of the network's size."""
        height, _, channels = self._shape
        assert height is not None
        assert channels is not None
        return request(height, channels, images)

    def seconds(self, size: int, runs: int) -> float:
        """Of one batch, the mean of so many back to back."""
        images = self._given.array((size, *self._shape), np.dtype(np.uint8))
        output = self._session.get_outputs()[0]  # as serving does where confidences are not asked for
        classifies = len(output.shape) == 2
        shape = (size, output.shape[1]) if classifies else (size, *self._shape[:2])
        found = self._found.array(shape, np.dtype(np.float32 if classifies else np.uint8))
        start = time.perf_counter()
        for _ in range(runs):
            self._binding.bind_cpu_input(self._spec.name, images)
            self._binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(found))
            self._session.run_with_iobinding(self._binding)
        return (time.perf_counter() - start) / runs


def served(file: Path, raw: Raw, work: Work, size: int, bench: Bench) -> list[Figure]:
    """Images a second in a closed loop, over those of onnxruntime alone; then the latencies at a share of that."""
    settings = (f"engine.provider={bench.provider}", f"batching.max_batch_size={size}", "server.frontends=auto")
    runs = max(1, round(bench.trial / raw.seconds(size, 2)))
    with serving(file.parents[2], *settings) as server, Clients(bench.clients) as clients:
        # Twice as many images as a batch has are on their way, so that the next batch waits while one runs.
        callers = max(1, -(-2 * size // (work.images * bench.clients)))
        requests = max(callers, round(runs * size / (work.images * bench.clients)))
        watch = Watch()

        def loop() -> float:
            with watch:
                answers = clients.each(load.closed, server.grpc, work.method, work.body, callers, requests)
            return sum(len(one.latencies) * work.images / one.seconds for one in answers)

        ours, alone = in_turns(loop, lambda: size / raw.seconds(size, runs), bench.pairs)
        rate = LOAD * float(np.median(ours)) / work.images
        latencies = clients.at_rate(server.grpc, work, rate, 2 * bench.trial)
    return [throughput(work, size, ratio(ours, alone), ours, alone, watch), latency(work, size, latencies)]


def throughput(
    work: Work, size: int, found: Ratio, ours: Sequence[float], alone: Sequence[float], watch: Watch
) -> Figure:
    """The line of the report."""
    rates = f"{np.median(ours):,.0f} over {np.median(alone):,.0f} images/s"
    what = f"images/s served over onnxruntime alone with IO binding; {work.what}, batches of {size}"
    measured = f"{found}; {rates}{watch}"
    return Figure("G1", what, f">= {WANTED['ratio']:.2f}", measured, found.median >= WANTED["ratio"])


def latency(work: Work, size: int, latencies: Sequence[float]) -> Figure:
    """The line of the report."""
    p50, p99 = (float(np.quantile(latencies, q)) for q in (0.5, 0.99))
    load_ = f"requests of {work.images} images at a load of {LOAD:g}, Poisson"
    what = f"p99 of {load_}; {work.what}, batches of at most {size}"
    wanted = f"<= {1000 * WANTED['p99']:g} ms"
    return Figure("G2", what, wanted, f"{1000 * p99:.1f} ms; p50 {1000 * p50:.1f} ms", p99 <= WANTED["p99"])


def lone(file: Path, raw: Raw, bench: Bench) -> list[Figure]:
    """One image at a time, without and with CUDA graphs."""
    alone = 1000 * raw.seconds(1, max(1, round(bench.trial / raw.seconds(1, 2))))
    lines = []
    for graphs in (False, True) if bench.provider == "cuda" else (False,):
        settings = (f"engine.provider={bench.provider}", f"engine.cuda_graphs={str(graphs).lower()}")
        with serving(file.parents[2], *settings) as server:
            answers = load.closed(server.grpc, CLASSIFY, raw.request(1), 1, max(20, round(100 * bench.trial)))
        middle = 1000 * float(np.median(answers.latencies))
        what = f"a lone image, {'with' if graphs else 'without'} CUDA graphs, over onnxruntime alone without"
        lines.append(Figure("G3", what, "", f"p50 {middle:.2f} ms over {alone:.2f} ms", None))
    return lines


class Clients(ProcessPoolExecutor):
    """Processes that send requests, all at the same time."""

    def __init__(self, count: int) -> None:
        # spawn, not fork: gRPC's threads do not survive a fork.
        super().__init__(count, multiprocessing.get_context("spawn"))
        self.count = count

    def each(self, call: Callable[..., load.Answers], *arguments: object) -> list[load.Answers]:
        """What each of them found. Raises where a request failed."""
        return self._collect([self.submit(call, *arguments) for _ in range(self.count)])

    def at_rate(self, target: str, work: Work, rate: float, seconds: float) -> list[float]:
        """The latencies of requests that come at so many a second, over all processes."""
        own = rate / self.count
        arrivals = [
            np.cumsum(gaps(np.random.default_rng(seed), "poisson", own, 1.0, max(1, int(own * seconds)))).tolist()
            for seed in range(self.count)
        ]
        found = self._collect(
            [self.submit(load.at_times, target, work.method, work.body, times, 60.0) for times in arrivals]
        )
        return [latency for answers in found for latency in answers.latencies]

    def _collect(self, running: list) -> list[load.Answers]:  # type: ignore[type-arg]
        found: list[load.Answers] = [each.result() for each in running]
        errors = [error for answers in found for error in answers.errors]
        if errors:
            raise RuntimeError(f"{len(errors)} requests failed, the first with {errors[0].name}")
        return found


if __name__ == "__main__":
    sys.exit(main())
