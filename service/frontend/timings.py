"""Where the time of one image went. The stages follow each other without a gap: their sum is the total."""

import time
from typing import NamedTuple

from service import metrics
from service.channel import Times
from service.frontend.rpc import Call


class Marks(NamedTuple):
    """When the front end's stages ended, CLOCK_MONOTONIC in ns. Tensors need no decoding: `decoded` is then `began`."""

    began: int
    decoded: int
    preprocessed: int


class Timings(NamedTuple):
    """Seconds by stage, and from the request's arrival to this image's result."""

    stages: dict[str, float]
    total: float


def observe(call: Call, marks: Marks, times: Times) -> Timings:
    """Count one answered image and its stages in the metrics; they come back for the response."""
    done = time.monotonic_ns()
    ends = (
        marks.began,  # receive: parsing, and the wait for a thread
        marks.decoded,
        marks.preprocessed,
        times.gather,  # queue: with the way to the engine
        times.run,
        times.scatter,
        times.done,
        done,  # postprocess: with the way back from the engine
    )
    begins = (call.arrived, *ends[:-1])
    seconds = [(end - begin) / 1e9 for begin, end in zip(begins, ends, strict=True)]
    images, histograms = metrics.image_counters(call.model, call.version)
    images.inc()
    for histogram, span in zip(histograms, seconds, strict=True):
        histogram.observe(span)
    return Timings(dict(zip(metrics.STAGES, seconds, strict=True)), (done - call.arrived) / 1e9)
