"""Where the time of one image went. The stages follow each other without a gap: their sum is the total."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from convoy.service import metrics
from convoy.service.frontend.call import Call
from convoy.service.ipc.channel import Times


class Marks(NamedTuple):
    """When the front end's stages ended, CLOCK_MONOTONIC in ns. Tensors need no decoding: `decoded` is then `began`."""

    began: int
    decoded: int
    preprocessed: int


class Timings(NamedTuple):
    """Seconds by stage, in the order of metrics.STAGES, and from the request's arrival to the result."""

    stages: Sequence[float]
    total: float


def observe(call: Call, marks: Marks, times: Times, images: int = 1) -> Timings:
    """Count images that were answered together, and their stages, in the metrics; they come back for the response."""
    done = time.monotonic_ns()
    ends = (
        call.arrived,
        marks.began,  # receive: parsing, and the wait for a thread
        marks.decoded,
        marks.preprocessed,
        times.gather,  # queue: with the way to the engine
        times.run,
        times.scatter,
        times.done,
        done,  # postprocess: with the way back from the engine
    )
    stages = [(end - begin) / 1e9 for begin, end in pairwise(ends)]
    metrics.count_images(call.model, call.version, images, stages)
    return Timings(stages, (done - call.arrived) / 1e9)
