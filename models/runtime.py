"""Opens a graph in onnxruntime, with the threads that training has; and where networks run best."""

import re
from pathlib import Path
from typing import TypeAlias

import onnx
import onnxruntime
import torch

from convoy.service.runtime_words import reason

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Session: TypeAlias = onnxruntime.InferenceSession
_BEFORE = re.compile(r"^.*Status Message: |^.* was false\. ")  # the node; the condition in its source


def session(graph: onnx.ModelProto | Path, providers: list[str] | None = None, optimised: bool = True) -> Session:
    """A graph, or a file that holds one, on the CPU unless told otherwise. What is not optimised keeps the names of its
    nodes. Raises whatever onnxruntime makes of what it cannot run; its message says all that its log would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # As in serving; and the threads of one session would still spin while another one is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = graph if isinstance(graph, Path) else graph.SerializeToString()
    return Session(model, options, providers=providers or [CPU])


def providers() -> list[str]:
    """CUDA where onnxruntime has it, and the CPU, which takes over where there is no device, or no kernel."""
    offered = onnxruntime.get_available_providers()
    if CUDA in offered:
        onnxruntime.preload_dlls()
    return [name for name in (CUDA, CPU) if name in offered]


def device() -> torch.device:
    """Where PyTorch runs a network: CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def words(error: Exception) -> str:
    """What onnxruntime says, in one line, without the names of its own code."""
    return reason(RuntimeError(_BEFORE.sub("", " ".join(str(error).split()))))
