"""From nothing to ready, and the first requests after that."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from convoy.service.engine import profiles
from tests.performance import load, models
from tests.performance.figure import CLASSIFY, Figure, request, serving
from tests.performance.trials import in_turns, ratio

BARE_START = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
spec = session.get_inputs()[0]
for size in map(int, sys.argv[2].split(",")):
    session.run(None, {spec.name: numpy.zeros((size, *spec.shape[1:]), numpy.uint8)})
"""


def start(root: Path, architecture: str, pairs: int) -> Figure:
    """P15: from nothing to ready, over a script that imports, builds the session and runs each size once."""
    file = models.real(root, architecture)
    with serving(root):
        pass  # so that the profile is there, as at every start but the first
    (known,) = profiles.read(file.parent)
    sizes = ",".join(map(str, range(1, known.batch_size + 1)))

    def ours() -> float:
        begin = time.perf_counter()
        with serving(root):
            return time.perf_counter() - begin

    def bare() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", BARE_START, str(file), sizes], check=True)
        return time.perf_counter() - begin

    found = ratio(*in_turns(ours, bare, pairs))
    what = (
        f"time from start to ready, divided by that of a bare script that runs the same batches: {architecture}, "
        "profile there"
    )
    return Figure("P15", what, "<= 1.3", str(found), found.median <= 1.3)


def first_requests(root: Path, architecture: str, starts: int) -> Figure:
    """P15: the slowest of the first requests after ready, over the 99th percentile later on; one caller."""
    models.real(root, architecture)
    slowest: list[float] = []
    steady: list[float] = []
    for _ in range(starts):
        with serving(root) as server:
            latencies = load.closed(server.grpc, CLASSIFY, request(224, 3), 1, 220).latencies
        slowest.append(max(latencies[:20]))
        steady += latencies[20:]
    p99 = float(np.quantile(steady, 0.99))
    worst = max(slowest) / p99
    return Figure(
        "P15",
        f"slowest of the first 20 requests, divided by the p99 of the later ones: {architecture}, {starts} starts",
        "<= 2",
        f"{worst:.2f}; p99 {1000 * p99:.1f} ms",
        worst <= 2,
    )
