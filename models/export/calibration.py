"""What values the tensors of a graph take, seen over images that are run through it."""

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
# onnxruntime's 128 bins for as many quantised ones leave the search for the least entropy one candidate, the maximum.
ENTROPY = {"num_bins": 512, "num_quantized_bins": 256}

Inputs = dict[str, NDArray[np.generic]]


def ranges(
    model: onnx.ModelProto, batches: Iterable[Inputs], method: Calibration, operations: Sequence[str] | None = None
) -> TensorsData:
    """The range of every float tensor that nodes of these `operations`, or any, read or make, by name.

    batches  what goes to the graph's inputs, by name, a batch at a time; a range is taken over all of them: the whole
             of it (minmax), all but one value in 100,000 (percentile), or the part that keeps most of the information
             (entropy; Migacz: 8-bit Inference with TensorRT, GTC 2017)

    Raises whatever onnxruntime raises.
    """
    with quiet(), tempfile.TemporaryDirectory() as name:
        file, augmented = Path(name) / "model.onnx", Path(name) / "augmented.onnx"
        onnx.save(model, file)
        options = ENTROPY if method == "entropy" else {}
        calibrator = quantization.create_calibrator(
            file, operations, str(augmented), METHODS[method], extra_options=options
        )
        for batch in batches:
            # One at a time: the calibrator keeps every activation of what it is given at once.
            calibrator.collect_data(_One(batch))
        return calibrator.compute_data()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime's tools print each step to stdout, which is for results, and warn of what is meant: not in here."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numpy in there, for tensors without any range
            yield
    finally:
        logging.disable(logging.NOTSET)


class _One(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A single batch."""

    def __init__(self, batch: Inputs) -> None:
        self.batches = iter([batch])

    def get_next(self) -> Inputs | None:
        return next(self.batches, None)
