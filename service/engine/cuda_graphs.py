"""CUDA graphs: recorded runs of one shape, which the device replays without a launch per kernel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue, RunOptions

from convoy.service.repository import TensorSpec

_MOST = 128  # graphs per session; a session never frees them
_KEY = "gpu_graph_id"
_NONE = "-1"


@dataclass(frozen=True, slots=True)
class _Graph:
    options: RunOptions
    binding: onnxruntime.IOBinding
    inputs: list[OrtValue]
    outputs: list[OrtValue]


class Graphs:
    """The graphs of a session created with `enable_cuda_graph`.

    A graph is tied to device memory at fixed addresses, and to the thread that recorded it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device: int,
    ) -> None:
        self._session, self._inputs, self._outputs, self._device = session, inputs, outputs, device
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}
        # Without an id, onnxruntime would replay the first graph for every other shape, too.
        self.without = _options(_NONE)

    def run(
        self, arrays: Sequence[NDArray[np.generic]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.generic]] | None:
        """The outputs, with `shapes`, valid until the next run; None if the limit of graphs is reached.

        The first run of a shape records its graph.
        """
        key = tuple(values.shape for values in arrays)
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) >= _MOST:
                return None
            graph = self._graphs[key] = self._make(key, shapes)
        for value, values in zip(graph.inputs, arrays, strict=True):
            value.update_inplace(values)
        self._session.run_with_iobinding(graph.binding, graph.options)
        return [value.numpy() for value in graph.outputs]

    def _make(self, inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> _Graph:
        binding = self._session.io_binding()
        input_values = [self._memory(spec, shape) for spec, shape in zip(self._inputs, inputs, strict=True)]
        output_values = [self._memory(spec, shape) for spec, shape in zip(self._outputs, outputs, strict=True)]
        for spec, value in zip(self._inputs, input_values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
        for spec, value in zip(self._outputs, output_values, strict=True):
            binding.bind_ortvalue_output(spec.name, value)
        return _Graph(_options(str(len(self._graphs) + 1)), binding, input_values, output_values)

    def _memory(self, spec: TensorSpec, shape: tuple[int, ...]) -> OrtValue:
        return OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype).type, "cuda", self._device)


def _options(number: str) -> RunOptions:
    options = RunOptions()
    options.add_run_config_entry(_KEY, number)
    return options
