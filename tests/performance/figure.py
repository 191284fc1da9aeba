"""One line of the report, and what the measurements share: requests, servers, the sleep engine's times."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance import load
from tests.performance.processes import cpu_seconds
from tests.service.running import Server

CLASSIFY = "/convoy.v1.Vision/Classify"
SEGMENT = "/convoy.v1.Vision/Segment"
INFER = "/inference.GRPCInferenceService/ModelInfer"
FIXED, EACH = 0.005204, 0.001082  # seconds of a batch of n: FIXED + n EACH, as of a GPU in the literature
ANSWER_BYTES = 250  # of a classification with five labels and its timings
QUIET = ("server.lame_duck_seconds=0",)


@dataclass(frozen=True)
class Figure:
    """One line of the report. `reached` is None where nothing was asked for."""

    number: str
    what: str
    wanted: str
    measured: str
    reached: bool | None


def seconds_of(size: int) -> float:
    """Of a batch in the sleep engine."""
    return FIXED + EACH * size


def sleeping(scale: float = 1.0) -> str:
    """The setting for an engine that takes `scale` times as long."""
    return f"engine.sleep_ms=[{1000 * scale * FIXED}, {1000 * scale * EACH}]"


def request(side: int, channels: int, images: int = 1, model: str = "") -> bytes:
    """A Classify request of raw images."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8).tobytes()
    raw = pb.RawImage(pixels=pixels, height_px=side, width_px=side, channels=channels)
    return pb.ClassifyRequest(model=model, images=[pb.Image(raw=raw)] * images, top_k=5).SerializeToString()


def scenes(side: int, images: int = 1, model: str = "") -> bytes:
    """A Segment request of raw RGB images."""
    return segment_request((side, side), images, model)


def segment_request(size: tuple[int, int], images: int = 1, model: str = "") -> bytes:
    """The same of any size, height and width."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8).tobytes()
    raw = pb.RawImage(pixels=pixels, height_px=size[0], width_px=size[1], channels=3)
    return pb.SegmentRequest(model=model, images=[pb.Image(raw=raw)] * images).SerializeToString()


@contextmanager
def serving(root: Path, *settings: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server with these settings on a repository; `environment` is set for it beside ours."""
    with Server(root, [*QUIET, *settings], environment=environment) as server:
        yield server


def cpu_per_request(pid: int, trial: Callable[[], load.Answers]) -> float:
    """Seconds of CPU time of a process tree for each request that a trial sends."""
    before = cpu_seconds(pid)
    answers = trial()
    return (cpu_seconds(pid) - before) / (len(answers.latencies) + len(answers.errors))
