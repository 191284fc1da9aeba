"""onnxruntime sessions, the choice of device, and the number of threads."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import onnx
import onnxruntime
import torch

from convoy.service.errors import runtime_reason
from convoy.service.machine import cores

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Session: TypeAlias = onnxruntime.InferenceSession
_BEFORE = re.compile(r"^.*Status Message: |^.* was false\. ")  # the failing node; the failed condition in its source

MAX_THREADS = 16  # small networks get slower with more
# Of a forward pass. With less work, waking a second thread and waiting for it takes longer than it saves: LeNet-5 has
# 13 million in a batch of 32, and with two threads on a busy machine takes two to three times as long as with one.
MULTIPLY_ADDS_PER_THREAD = 100_000_000


Step: TypeAlias = Callable[[str], None]  # called with the name of each long step before it begins


def silent(_: str) -> None:
    """The `Step` that nobody wants to know of."""


def session(graph: onnx.ModelProto | Path, providers: list[str] | None = None, optimised: bool = True) -> Session:
    """Opens a graph, or a file with one, on the CPU by default. A session that is not optimised keeps its node names.
    Raises onnxruntime's exception for a graph it cannot run; its message contains all that the log would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # As in serving. Otherwise one session's threads keep spinning while another session is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = graph if isinstance(graph, Path) else graph.SerializeToString()
    return Session(model, options, providers=providers or [CPU])


def providers() -> list[str]:
    """Returns CUDA, if onnxruntime has it, and the CPU as the fallback without a device or a kernel."""
    offered = onnxruntime.get_available_providers()
    if CUDA in offered:
        onnxruntime.preload_dlls()
    return [name for name in (CUDA, CPU) if name in offered]


def device() -> torch.device:
    """Returns the device on which PyTorch runs a network: CUDA if available."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def error_message(error: Exception) -> str:
    """Returns onnxruntime's error message on one line, without the names of its source code."""
    return runtime_reason(RuntimeError(_BEFORE.sub("", " ".join(str(error).split()))))


def useful_threads(multiply_adds: int) -> int:
    """Returns the number of threads that pay for a pass with this many multiply-adds. It does not depend on what else
    runs now: sums, and with them the trained weights, depend on the number of threads."""
    return max(1, multiply_adds // MULTIPLY_ADDS_PER_THREAD)


@contextmanager
def threads(most: int) -> Iterator[None]:
    """Limits torch's threads as `limit_threads` does while the block runs, then restores their number."""
    before = torch.get_num_threads()
    limit_threads(most=most)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def limit_threads(processes: int = 1, most: int = MAX_THREADS) -> None:
    """Sets torch's threads to the number of cores available to this process, at most 16 and at most `most`; `processes`
    share the cores.

    A lower OMP_NUM_THREADS, which clusters set for each task of a job, is respected.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    allowed = int(limit) if limit.isascii() and limit.isdecimal() and int(limit) else MAX_THREADS
    torch.set_num_threads(max(1, min(cores() // processes, MAX_THREADS, most, allowed)))
