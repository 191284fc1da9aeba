"""Tensors of the Open Inference Protocol: checks requests against a model's inputs, decodes inputs, encodes outputs."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service.dtypes import CONTENTS, DATATYPES
from convoy.service.errors import BadRequest, BadTensor, listed, named
from convoy.service.frontend.regions import Place, Regions
from convoy.service.frontend.wire import NOTHING
from convoy.service.ipc.slots import MAX_RANK
from convoy.service.metadata import Document, InputSpec
from convoy.service.pb import inference_pb2 as pb
from convoy.service.repository import TensorSpec, Version, is_placeholder

_NOWHERE: Mapping[int, Place] = MappingProxyType({})
_REGION, _BYTES, _OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"


class Tensors(NamedTuple):
    """The checked inputs of a request: one array per input of the model, in the model's order."""

    rows: int  # the batch dimension; 1 if the model's requests are not batched
    arrays: list[NDArray[np.generic]]  # read-only; they may share the request's memory
    shared: Mapping[int, Place] = _NOWHERE  # of inputs in shared memory, whose arrays have only dtype and shape


class Wanted(NamedTuple):
    """An output that a request wants."""

    number: int
    classes: int = 0  # how many ranked labels to return in its place; 0: return the tensor
    place: Place | None = None  # where its contents go; None: into the response


def read(
    request: pb.ModelInferRequest,
    row: Version,
    max_input_pixels: int,
    payloads: Mapping[int, memoryview] = NOTHING,
    regions: Regions | None = None,
) -> Tensors:
    """Checks and reads the inputs of a request.

    payloads  raw contents that are not in the message
    regions   of shared memory; None: it is not offered

    Raises BadTensor, naming the tensor, if a name, dtype, rank, side or byte count does not match the model;
    UnknownRegion.
    """
    by_name = _by_name(request, row)
    places = _places(by_name.values(), regions)
    raw = request.raw_input_contents
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        both = next(tensor.name for tensor in request.inputs if tensor.HasField("contents"))
        raise BadTensor(f"input {named(both)} has contents as well as raw_input_contents, want one of the two")
    if raw and len(raw) != len(request.inputs) - len(places):
        there = f", {len(places)} of them in shared memory" if places else ""
        raise BadTensor(f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs{there}")
    free: dict[str, tuple[int, str]] = {}
    arrays: list[NDArray[np.generic]] = []
    shared = {}
    for number, spec in enumerate(row.inputs):
        entry, tensor = by_name[spec.name]
        shape = _shape(tensor, spec, free, row.batched)
        if entry in places:
            shared[number] = _checked(places[entry], spec, shape)
            arrays.append(np.broadcast_to(np.zeros((), spec.dtype), shape))
        elif raw:
            entry -= sum([other < entry for other in places])  # those in shared memory have no raw contents
            arrays.append(_from_raw(payloads.get(entry) or raw[entry], spec, shape))
        else:
            arrays.append(_from_contents(tensor, spec, shape))
    rows = arrays[0].shape[0] if row.batched else 1
    if row.batched and not 1 <= rows <= row.max_batch_size:
        raise BadTensor(
            f"input {named(row.inputs[0].name)} has a batch of {rows}, want 1 to {row.max_batch_size}: max_batch_size"
        )
    if row.document is not None:
        _check_sides(row.document, arrays[0].shape[1:], max_input_pixels)
    return Tensors(rows, arrays, shared) if shared else Tensors(rows, arrays)


def output_bytes(row: Version, inputs: Sequence[NDArray[np.generic]], number: int) -> int:
    """Returns the bytes of output `number` for these inputs; 0 if its sides do not follow from theirs."""
    sides = {
        name: side
        for spec, values in zip(row.inputs, inputs, strict=True)
        for name, side in zip(spec.names, values.shape, strict=False)  # a file may leave the rank open
        if name
    }
    spec = row.outputs[number]
    nbytes = np.dtype(spec.dtype).itemsize
    for fixed, name in zip(spec.shape, spec.names, strict=True):
        side = fixed if fixed is not None else sides.get(name)
        if side is None:
            return 0
        nbytes *= side
    return nbytes


def requested_outputs(request: pb.ModelInferRequest, row: Version, regions: Regions | None = None) -> list[Wanted]:
    """Returns the requested outputs, in request order. `regions`: see `read`.

    Raises BadTensor for an output that the model does not have, or a parameter that is not offered; UnknownRegion.
    """
    if not request.outputs:
        return [Wanted(number) for number in range(len(row.outputs))]
    numbers = {spec.name: number for number, spec in enumerate(row.outputs)}
    wanted = []
    for output in request.outputs:
        if output.name not in numbers:
            raise BadTensor(
                f"output {named(output.name)} is unknown, want one of [{listed(map(repr, sorted(numbers)))}]"
            )
        number = numbers[output.name]
        if output.parameters:
            place = _place(f"output {named(output.name)}", output.parameters, regions)
            wanted.append(Wanted(number, _classes(output), place))
        else:
            wanted.append(Wanted(number))
    return wanted


def ranked(values: NDArray[Any], classes: int, labels: Sequence[str]) -> NDArray[np.object_]:
    """Returns (N, classes) scores as (N, min(classes, ...)) texts `value:index:label`, the highest first."""
    flat = values.reshape(values.shape[0], -1)
    order = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :classes]
    texts = [
        [f"{flat[row, index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "") for index in order[row]]
        for row in range(flat.shape[0])
    ]
    return np.array(texts, dtype=object)


def byte_strings(texts: NDArray[np.object_]) -> bytes:
    """Returns texts as the protocol's BYTES: each after its length, 4 bytes, little-endian."""
    encoded = [text.encode() for text in texts.reshape(-1)]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def put_place(parameters: Any, place: Place) -> None:
    """Records in an output's parameters, a map, that its contents are in shared memory."""
    parameters[_REGION].string_param = place.region.described.name
    parameters[_BYTES].int64_param = place.nbytes
    if place.offset:
        parameters[_OFFSET].int64_param = place.offset


def metadata_shape(spec: TensorSpec) -> list[int]:
    """Returns the shape as the protocol writes it: -1 for a free side."""
    return [-1 if side is None else side for side in spec.shape]


def integer(name: str, parameter: pb.InferParameter) -> int:
    """Returns the value of an integer parameter. Raises BadRequest, naming it, if it has another type."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise BadRequest(f"parameter {name!r} has {kind or 'no value'}, want int64_param")
    number: int = getattr(parameter, kind)
    return number


def _by_name(
    request: pb.ModelInferRequest, row: Version
) -> Mapping[str, tuple[int, pb.ModelInferRequest.InferInputTensor]]:
    names = [spec.name for spec in row.inputs]
    by_name: dict[str, tuple[int, pb.ModelInferRequest.InferInputTensor]] = {}
    for place, tensor in enumerate(request.inputs):
        if tensor.name in row.defaults:
            raise BadTensor(f"input {named(tensor.name)} has a fixed value in the model file: omit it")
        if tensor.name not in names:
            raise BadTensor(f"input {named(tensor.name)} is unknown, want [{listed(map(repr, names))}]")
        if tensor.name in by_name:
            raise BadTensor(f"input {named(tensor.name)} occurs twice")
        by_name[tensor.name] = (place, tensor)
    for name in names:
        if name not in by_name:
            raise BadTensor(f"input {named(name)} is missing, want [{listed(map(repr, names))}]")
    return by_name


def _shape(
    tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec, free: dict[str, tuple[int, str]], batched: bool
) -> tuple[int, ...]:
    if tensor.datatype != DATATYPES[spec.dtype]:
        raise BadTensor(f"input {spec.name!r} has datatype {tensor.datatype[:16]!r}, want {DATATYPES[spec.dtype]!r}")
    shape = tuple(tensor.shape)
    wanted = f"want {metadata_shape(spec)}"
    if not spec.shape:  # a scalar, or any rank: onnxruntime knows which
        if len(shape) > MAX_RANK or any(side < 1 for side in shape):
            raise BadTensor(
                f"input {spec.name!r} has shape {list(shape)[:MAX_RANK]}, want at most {MAX_RANK} sides from 1"
            )
        return shape
    if len(shape) != len(spec.shape):
        raise BadTensor(f"input {spec.name!r} has rank {len(shape)}, {wanted}")
    for side, fixed, name in zip(shape, spec.shape, spec.names, strict=True):
        if side < 1 or fixed not in (None, side):
            raise BadTensor(f"input {spec.name!r} has shape {list(shape)}, {wanted}")
        binds = bool(name) and (batched or not is_placeholder(name))
        before, whose = free.setdefault(name, (side, spec.name)) if binds else (side, "")
        if before != side:
            raise BadTensor(f"input {spec.name!r} has {name} = {side}, input {whose!r} has {before}")
    return shape


def _count(shape: tuple[int, ...]) -> int:
    # Python integers, so that a product of sides never overflows.
    count = 1
    for side in shape:
        count *= side
    return count


def _from_raw(data: bytes | memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[np.generic]:
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    wanted = _count(shape) * dtype.itemsize
    if len(data) != wanted:
        raise BadTensor(f"input {named(spec.name)} has {len(data)} bytes, want {wanted} for shape {list(shape)}")
    values: NDArray[np.generic] = np.frombuffer(data, dtype).reshape(shape)
    return values


def _from_contents(
    tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec, shape: tuple[int, ...]
) -> NDArray[np.generic]:
    field = CONTENTS.get(spec.dtype)
    if field is None:
        raise BadTensor(f"input {named(spec.name)} is {DATATYPES[spec.dtype]}, want it in raw_input_contents")
    values = getattr(tensor.contents, field)
    count = _count(shape)
    if len(values) != count:
        raise BadTensor(f"input {named(spec.name)} has {len(values)} {field}, want {count} for shape {list(shape)}")
    try:
        # A list, because numpy would silently wrap out-of-range values of the container itself.
        return np.array(list(values), np.dtype(spec.dtype)).reshape(shape)
    except (OverflowError, ValueError):
        raise BadTensor(f"input {named(spec.name)} has values outside {DATATYPES[spec.dtype]}") from None


def _check_sides(document: Document, shape: tuple[int, ...], max_input_pixels: int) -> None:
    spec = document.takes
    if document.input is not None:
        _check_image(document.input, *shape[:2])
    if spec.free and spec.places(shape) > max_input_pixels:
        sides = "x".join(str(side) for side, axis in zip(shape, spec.axes, strict=True) if axis.name != "channel")
        unit = "places" if document.input is None else "pixels"
        most = f"{max_input_pixels} in total, the server's limits.max_input_pixels"
        raise BadTensor(f"input {named(spec.name)} is {sides} {unit}, want at most {most}")


def _check_image(spec: InputSpec, height: int, width: int) -> None:
    if height < spec.min_height or width < spec.min_width:
        raise BadTensor(f"input 'image' has sides {[height, width]}, want at least {[spec.min_height, spec.min_width]}")
    if height % spec.multiple or width % spec.multiple:
        raise BadTensor(f"input 'image' has sides {[height, width]}, want multiples of {spec.multiple}")


def _classes(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int:
    if "classification" not in output.parameters:
        return 0
    classes = integer("classification", output.parameters["classification"])
    if classes < 1:
        raise BadTensor(f"output {named(output.name)} requests {classes} classes, want 1 or more")
    return classes


def _places(
    inputs: Iterable[tuple[int, pb.ModelInferRequest.InferInputTensor]], regions: Regions | None
) -> Mapping[int, Place]:
    """Returns where the inputs in shared memory are, by their index in the request."""
    found = {}
    for entry, tensor in inputs:
        if tensor.parameters:
            what = f"input {named(tensor.name)}"
            place = _place(what, tensor.parameters, regions)
            if place is not None:
                if tensor.HasField("contents"):
                    raise BadTensor(f"{what} has contents and is in shared memory, want one of the two")
                found[entry] = place
    return found or _NOWHERE


def _place(what: str, parameters: Mapping[str, pb.InferParameter], regions: Regions | None) -> Place | None:
    given = [name for name in parameters if name.startswith("shared_memory_")]
    if not given:
        return None
    if regions is None:
        raise BadTensor(f"{what} is in shared memory, which is not offered here: see the setting admin.shared_memory")
    for name in (_REGION, _BYTES):
        if name not in given:
            raise BadTensor(f"{what} has {listed(sorted(given))}, but not {name}")
    if parameters[_REGION].WhichOneof("parameter_choice") != "string_param":
        raise BadRequest(f"parameter {_REGION!r} of {what} is no text, want string_param")
    offset = integer(_OFFSET, parameters[_OFFSET]) if _OFFSET in given else 0
    region = regions.get(parameters[_REGION].string_param)
    return region.place(offset, integer(_BYTES, parameters[_BYTES]), what)


def _checked(place: Place, spec: TensorSpec, shape: tuple[int, ...]) -> Place:
    wanted = _count(shape) * np.dtype(spec.dtype).itemsize
    if place.nbytes != wanted:
        raise BadTensor(
            f"input {named(spec.name)} has {place.nbytes} bytes of shared memory, want {wanted} for shape {list(shape)}"
        )
    return place
