"""Opens a graph in onnxruntime, with the threads that training has."""

from pathlib import Path
from typing import TypeAlias

import onnx
import onnxruntime
import torch

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Session: TypeAlias = onnxruntime.InferenceSession


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
