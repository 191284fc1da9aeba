"""The description of a version in ListModels."""

from collections.abc import Sequence

from convoy.service.dtypes import DATATYPES
from convoy.service.errors import BadRequest, named
from convoy.service.metadata import CONFIDENCE, Context, InputSpec, ReceptiveField, TensorInput
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import NAME, Version

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


_MOST = 3 << 20  # bytes of a page; one version takes at most about 2 MiB


_MOST_DIGITS = 18  # of a version


def page(rows: Sequence[Version], token: str) -> pb.ListModelsResponse:
    """Returns those of the rows of a table that come after a page with this token, as many as fit one message.

    Raises BadRequest if no page has had such a token. The table may have changed since: a row is on no two pages.
    """
    after = _place(token) if token else ("", 0)
    response = pb.ListModelsResponse()
    size = 0
    last = token
    for row in rows:
        if (row.model, -row.version) <= after:
            continue
        info = describe(row)
        size += info.ByteSize() + 5  # its tag and length
        if size > _MOST and response.models:
            response.next_page_token = last
            break
        response.models.append(info)
        last = f"{row.model}/{row.version}"
    return response


def _place(token: str) -> tuple[str, int]:
    model, _, version = token.rpartition("/")
    if not (NAME.fullmatch(model) and version.isascii() and version.isdecimal() and len(version) <= _MOST_DIGITS):
        raise BadRequest(f"page_token is {named(token)}, want the next_page_token of an answer")
    return model, -int(version)


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
    info.confidence = CONFIDENCE in [spec.name for spec in row.outputs]
    info.labels.extend(document.labels)
    info.palette.extend(pb.Colour(red=red, green=green, blue=blue) for red, green, blue in document.palette or ())
    if document.input is not None:
        info.input.CopyFrom(_input_size(document.input))
    if document.tensor is not None:
        info.tensor.CopyFrom(_tensor_input(document.tensor))
    if document.receptive_field is not None:
        info.receptive_field.CopyFrom(_receptive_field(document.receptive_field))
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
        min_height_px=spec.min_height,
        min_width_px=spec.min_width,
    )


def _receptive_field(field: ReceptiveField) -> pb.ReceptiveField:
    return pb.ReceptiveField(height=_context(field.height), width=_context(field.width))


def _context(context: Context | None) -> pb.Context | None:
    if context is None:
        return None
    return pb.Context(before_px=context.before, after_px=context.after, stride_px=context.stride)


def _tensor_input(tensor: TensorInput) -> pb.TensorInput:
    axes = (
        pb.TensorAxis(
            name=axis.name, size=axis.size or 0, spacing=axis.spacing or 0, unit=axis.unit, labels=axis.labels or ()
        )
        for axis in tensor.axes
    )
    return pb.TensorInput(name=tensor.name, datatype=DATATYPES[tensor.dtype], axes=axes, unit=tensor.unit)
