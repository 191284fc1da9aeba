"""The description of a version in ListModels."""

from convoy.service.dtypes import DATATYPES
from convoy.service.metadata import InputSpec, TensorInput
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import Version

_TASKS = {
    None: pb.TASK_TENSORS,
    "classification": pb.TASK_CLASSIFICATION,
    "segmentation": pb.TASK_SEGMENTATION,
    "matching": pb.TASK_MATCHING,
}
_STATES = {
    "LOADING": pb.MODEL_STATE_LOADING,
    "READY": pb.MODEL_STATE_READY,
    "UNAVAILABLE": pb.MODEL_STATE_UNAVAILABLE,
}


def describe(row: Version) -> pb.ModelInfo:
    """Returns a row of the table as a ModelInfo, which contains the reason if the version does not serve."""
    info = pb.ModelInfo(
        model=row.model,
        version=row.version,
        state=_STATES[row.state],
        reason=row.reason,
        provider=row.provider,
        max_batch_size=row.max_batch_size,
    )
    if row.state != "READY":
        return info
    document = row.document
    info.task = _TASKS[document.task if document else None]
    if document is None:
        return info
    info.labels.extend(document.labels)
    info.palette.extend(pb.Colour(red=red, green=green, blue=blue) for red, green, blue in document.palette or ())
    if document.input is not None:
        info.input.CopyFrom(_input_size(document.input))
    if document.tensor is not None:
        info.tensor.CopyFrom(_tensor_input(document.tensor))
    if document.variant is not None:
        info.precision = document.variant.precision
    if document.provenance is not None:
        info.architecture = document.provenance.architecture
        info.data = document.provenance.data
        info.metrics.update(document.provenance.metrics)
    return info


def _input_size(spec: InputSpec) -> pb.InputSize:
    return pb.InputSize(
        height_px=spec.height or 0,
        width_px=spec.width or 0,
        multiple=spec.multiple,
        colour=spec.colour,
        fit=spec.fit,
    )


def _tensor_input(tensor: TensorInput) -> pb.TensorInput:
    axes = (
        pb.TensorAxis(
            name=axis.name, size=axis.size or 0, spacing=axis.spacing or 0, unit=axis.unit, labels=axis.labels or ()
        )
        for axis in tensor.axes
    )
    return pb.TensorInput(name=tensor.name, datatype=DATATYPES[tensor.dtype], axes=axes, unit=tensor.unit)
