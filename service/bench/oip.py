"""Load test requests to a model of any Open Inference Protocol server: random tensors that match its metadata."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from convoy.service.bench.calls import Outcome, Workload
from convoy.service.bench.plan import InputTensor, TensorModel
from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.tensors import TensorClient
from convoy.service.dtypes import NAMES
from convoy.service.errors import BadConfig
from convoy.service.pb import inference_pb2 as pb

Shapes = Mapping[str, Sequence[tuple[int, ...]]]  # by input name
_SERVICE = "/inference.GRPCInferenceService"
_DISTINCT = 16  # requests: enough to defeat caches
_BYTES = 1 << 26  # of all of them together: fewer if they are large


def models(
    server: str,
    weights: Sequence[tuple[str, float]],
    shapes: Shapes,
    batch: int,
    seconds: float,
    credentials: Credentials = PLAIN,
) -> tuple[TensorModel, ...]:
    """The models according to the server's metadata.

    shapes  of inputs with free dimensions, from the command line; they are sent in turn
    batch   the first dimension if only that one is free
    Raises BadConfig, ServerError.
    """
    with TensorClient(server, seconds, credentials) as client:
        answers = [client.metadata(name) for name, _ in weights]
    known = {tensor.name for metadata in answers for tensor in metadata.inputs}
    if unknown := sorted(set(shapes) - known):
        raise BadConfig(f"--shape of {unknown[0]!r}: the inputs are {', '.join(sorted(known))}")
    return tuple(
        tensor_model(metadata, name, weight, shapes, batch)
        for metadata, (name, weight) in zip(answers, weights, strict=True)
    )


def tensor_model(
    metadata: pb.ModelMetadataResponse, name: str, weight: float, shapes: Shapes, batch: int
) -> TensorModel:
    """A model and the shapes to send. Raises BadConfig, naming the input that does not match."""
    inputs = tuple(
        InputTensor(
            name=tensor.name,
            datatype=tensor.datatype,
            shapes=_shapes(tensor, shapes.get(tensor.name, ()), batch),
            rows=bool(tensor.shape) and tensor.shape[0] < 0,
        )
        for tensor in metadata.inputs
    )
    if not inputs:
        raise BadConfig(f"the server reports no inputs of model {name!r}")
    return TensorModel(model=name, version="", weight=weight, inputs=inputs)


def workload(model: TensorModel, index: int, seed: int) -> Workload:
    """Random tensors, with the shapes of each input in turn; `index` is the model's in the plan."""
    turns = math.lcm(*(len(tensor.shapes) for tensor in model.inputs))
    random = np.random.default_rng((seed, 2))
    first = [_request(random, model, number) for number in range(turns)]
    rounds = min(max(1, _DISTINCT // turns), max(1, _BYTES // sum(map(len, first))))
    bodies = first + [_request(random, model, number) for number in range(turns, turns * rounds)]
    leading = model.inputs[0]
    rows = [leading.shapes[number % len(leading.shapes)][0] if leading.rows else 1 for number in range(turns)]

    def images(number: int) -> int:
        return rows[number % turns]

    # The answer is not parsed: otherwise this process's reading speed would limit servers with large answers.
    def read(number: int, answer: bytes) -> Outcome:
        return Outcome(index, images(number), (), ())

    return Workload(
        f"{_SERVICE}/ModelInfer", lambda number: bodies[number % len(bodies)], read, images, read, len(bodies)
    )


def _shapes(
    tensor: pb.ModelMetadataResponse.TensorMetadata, chosen: Sequence[tuple[int, ...]], batch: int
) -> tuple[tuple[int, ...], ...]:
    sides = tuple(tensor.shape)
    if tensor.datatype not in NAMES:
        raise BadConfig(f"input {tensor.name!r} is {tensor.datatype}, want one of {', '.join(NAMES)}")
    for shape in chosen:
        if len(shape) != len(sides) or any(want not in (-1, side) for want, side in zip(sides, shape, strict=True)):
            raise BadConfig(f"--shape {tensor.name}:{_written(shape)} does not fit {_written(sides)}, where -1 is any")
    if not chosen and min(sides[1:], default=0) < 0:
        example = _written(tuple(side if side > 0 else 224 for side in (batch, *sides[1:])))
        raise BadConfig(
            f"input {tensor.name!r} has free sides ({_written(sides)}): set them, as in --shape {tensor.name}:{example}"
        )
    return tuple(chosen) or ((batch if sides and sides[0] < 0 else sides[0], *sides[1:]) if sides else (),)


def _request(random: np.random.Generator, model: TensorModel, number: int) -> bytes:
    request = pb.ModelInferRequest(model_name=model.model, model_version=model.version)
    for tensor in model.inputs:
        shape = tensor.shapes[number % len(tensor.shapes)]
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        request.raw_input_contents.append(_values(random, tensor.datatype, shape).tobytes())
    return bytes(request.SerializeToString())


def _values(random: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """UINT8 is 0..255 as for pixels, other integers 0..127, which every type can represent, floats 0..1."""
    dtype = np.dtype(NAMES[datatype])
    if dtype.kind == "f":
        return random.random(shape, np.float32).astype(dtype)
    high = {"BOOL": 2, "UINT8": 256}.get(datatype, 128)
    return random.integers(0, high, shape, dtype)


def _written(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
