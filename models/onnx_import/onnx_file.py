"""Inspection of an ONNX file made elsewhere: its tensors, opset, layout and likely task."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, ValueInfoProto, helper

from convoy.models import paths
from convoy.models.analysis.onnx_reader import free_negative_sides
from convoy.models.errors import BadNetworkFile
from convoy.models.settings import Layout, Task
from convoy.service import metadata

CHANNELS = (1, 3)  # of served images
MAX_EXTERNAL_BYTES = 1 << 30  # limit for embedding: an ONNX file may not be larger than 2 GiB
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}


class Tensor(NamedTuple):
    """An input or output; a free side is its name, or "?". For a value that is not a tensor, `dtype` is its kind, such
    as "sequence"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} [{', '.join(map(str, self.shape))}]"


class OnnxFile(NamedTuple):
    """A loaded file, with external data embedded and weights removed from its inputs. `external_bytes` were in other
    files; `layout` is None if the input's shape does not determine it."""

    model: onnx.ModelProto
    input: Tensor
    outputs: tuple[Tensor, ...]
    opset: int
    external_bytes: int
    layout: Layout | None


def load(path: Path) -> OnnxFile:
    """Inspects a file. Raises BadNetworkFile if it is not a network with one image input."""
    model, external_bytes = _load(path)
    if any(entry.key == metadata.KEY for entry in model.metadata_props):
        raise BadNetworkFile(f"{path} is already self-describing: copy it into a repository unchanged")
    _fix_weights(model)
    inputs, outputs = list(map(_tensor, model.graph.input)), tuple(map(_tensor, model.graph.output))
    if len(inputs) != 1:
        which = f" ({', '.join(map(str, inputs))})" if inputs else ""
        raise BadNetworkFile(f"{path} has {len(inputs)} inputs{which}, want one image")
    if not outputs:
        raise BadNetworkFile(f"{path} has no output, want one for an image")
    if len(inputs[0].shape) != 4 or inputs[0].dtype not in DTYPES.values():
        kinds = ", ".join(DTYPES.values())
        raise BadNetworkFile(f"{path} has the input {inputs[0]}, want an image: four axes of {kinds}")
    _check_inference(path, model)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return OnnxFile(model, inputs[0], outputs, opset, external_bytes, _layout(inputs[0].shape))


def likely_task(output: Tensor) -> Task | None:
    """Guesses the task: one number per class; one per class and pixel, or one class index per pixel; or neither."""
    sides, numbers = len(output.shape), output.dtype.startswith(("float", "bfloat", "double"))
    if numbers and (sides == 2 or (sides == 4 and output.shape[2:] == (1, 1))):
        return "classification"
    return "segmentation" if sides == 4 or (sides == 3 and not numbers) else None


def _load(path: Path) -> tuple[onnx.ModelProto, int]:
    paths.check_onnx(path)
    try:
        model = onnx.load(path, load_external_data=False)
        nbytes = sum(map(_external_bytes, model.graph.initializer))
        if nbytes > MAX_EXTERNAL_BYTES:
            raise BadNetworkFile(
                f"{path} has {nbytes >> 20} MiB of external data, want at most {MAX_EXTERNAL_BYTES >> 20} MiB: "
                "it would be embedded in one file"
            )
        if nbytes:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        free_negative_sides(model)
        _drop_unused(model)
        onnx.checker.check_model(model)
    except DecodeError:  # its message is about protobuf
        raise BadNetworkFile(f"{path} is not an ONNX file, or an incomplete one: want a complete .onnx file") from None
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise BadNetworkFile(f"{path} is not a valid ONNX file: {_line(error)}") from None
    return model, nbytes


def _drop_unused(model: onnx.ModelProto) -> None:
    """Removes unused weights: onnxruntime refuses those that are not inputs either, as in old files."""
    used = {value.name for value in model.graph.output} | _read_names(model.graph)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        unused = {tensor.name for tensor in model.graph.initializer} - used
        inputs = [value for value in model.graph.input if value.name not in unused]
        del model.graph.initializer[:], model.graph.input[:]
        model.graph.initializer.extend(kept)
        model.graph.input.extend(inputs)


def _read_names(graph: onnx.GraphProto) -> set[str]:
    """Returns the names that nodes read, including those of subgraphs."""
    names: set[str] = set()
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _read_names(inner) | {value.name for value in inner.output}
    return names


def _external_bytes(tensor: TensorProto) -> int:
    if tensor.data_location != TensorProto.EXTERNAL:
        return 0
    nbytes: int = int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return nbytes


def _fix_weights(model: onnx.ModelProto) -> None:
    """Removes weights from the inputs, where old files list them too, so that callers cannot override them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _check_inference(path: Path, model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            name = node.name or node.output[0]
            raise BadNetworkFile(
                f"{path} was exported for training: node {name!r} ({node.op_type}) depends on the other images of a "
                "batch; want it exported for inference"
            )


def _tensor(value: ValueInfoProto) -> Tensor:
    what = value.type.WhichOneof("value")
    if what != "tensor_type":
        return Tensor(value.name, str(what).removesuffix("_type"), ())
    kind = value.type.tensor_type
    shape = tuple(side.dim_value or side.dim_param or "?" for side in kind.shape.dim)
    dtype = DTYPES.get(kind.elem_type) or TensorProto.DataType.Name(kind.elem_type).lower()
    return Tensor(value.name, dtype, shape)


def _layout(shape: tuple[int | str, ...]) -> Layout | None:
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        return None
    return "NCHW" if first else "NHWC"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
