"""Value ranges of a graph's tensors, measured over a calibration set."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, TensorsData

from convoy.service.metadata import Calibration

METHODS: dict[Calibration, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# With onnxruntime's 128 bins for 128 quantised ones, the entropy search has one candidate only, the maximum.
ENTROPY = {"num_bins": 512, "num_quantized_bins": 256}

Inputs = dict[str, NDArray[np.generic]]


def ranges(
    model: onnx.ModelProto, batches: Iterable[Inputs], method: Calibration, operations: Sequence[str] | None = None
) -> TensorsData:
    """Returns the range of every float tensor that nodes of these `operations` (all by default) read or write, by name.

    batches  inputs of the graph by name, one batch at a time; a range covers all of them: every value (minmax), all but
             one in 100,000 (percentile), or the part that keeps the most information (entropy; Migacz: 8-bit Inference
             with TensorRT, GTC 2017)

    Raises the exceptions of onnxruntime.
    """
    with quiet(), tempfile.TemporaryDirectory() as name:
        file, augmented = Path(name) / "model.onnx", Path(name) / "augmented.onnx"
        onnx.save(model, file)
        options = ENTROPY if method == "entropy" else {}
        calibrator = quantization.create_calibrator(
            file, operations, str(augmented), METHODS[method], extra_options=options
        )
        for batch in batches:
            # One at a time: the calibrator keeps all activations of its input in memory.
            calibrator.collect_data(_One(batch))
        return calibrator.compute_data()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences onnxruntime's tools, which print each step to stdout, where results go, and warn about intended use."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # from numpy, for tensors with an empty range
            yield
    finally:
        logging.disable(logging.NOTSET)


class _One(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A reader of a single batch."""

    def __init__(self, batch: Inputs) -> None:
        self.batches = iter([batch])

    def get_next(self) -> Inputs | None:
        return next(self.batches, None)
