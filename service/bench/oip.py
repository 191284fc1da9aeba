"""Load test requests to a model of any Open Inference Protocol server: random tensors that match its metadata."""

import math
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from numpy.typing import NDArray

from convoy.service.bench.asking import Question
from convoy.service.bench.drive import Outcome
from convoy.service.bench.plan import InputTensor, TensorModel
from convoy.service.client.requests import OPTIONS
from convoy.service.client.results import read_error
from convoy.service.dtypes import NAMES
from convoy.service.errors import BadConfig
from convoy.service.pb import inference_pb2 as pb

Shapes = Mapping[str, Sequence[tuple[int, ...]]]  # by input name
_SERVICE = "/inference.GRPCInferenceService"
_DISTINCT = 16  # requests: enough to defeat caches
_BYTES = 1 << 26  # of all of them together: fewer if they are large


def models(
    server: str, weights: Sequence[tuple[str, float]], shapes: Shapes, batch: int, seconds: float
) -> tuple[TensorModel, ...]:
    """The models according to the server's metadata.

    shapes  of inputs with free dimensions, given by the user; they are sent in turn
    batch   the first dimension if only that one is free
    Raises BadConfig, ServerError.
    """
    with grpc.insecure_channel(server, options=OPTIONS) as channel:
        call = channel.unary_unary(
            f"{_SERVICE}/ModelMetadata",
            request_serializer=pb.ModelMetadataRequest.SerializeToString,
            response_deserializer=pb.ModelMetadataResponse.FromString,
        )
        try:
            told = [call(pb.ModelMetadataRequest(name=name), timeout=seconds) for name, _ in weights]
        except grpc.RpcError as error:
            raise read_error(error, server, seconds) from None
    known = {tensor.name for metadata in told for tensor in metadata.inputs}
    if unknown := sorted(set(shapes) - known):
        raise BadConfig(f"--shape of {unknown[0]!r}: the inputs are {', '.join(sorted(known))}")
    return tuple(
        asked(metadata, name, weight, shapes, batch) for metadata, (name, weight) in zip(told, weights, strict=True)
    )


def asked(metadata: pb.ModelMetadataResponse, name: str, weight: float, shapes: Shapes, batch: int) -> TensorModel:
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
        raise BadConfig(f"the server tells no inputs of model {name!r}")
    return TensorModel(model=name, version="", weight=weight, inputs=inputs)


def question(model: TensorModel, place: int, seed: int) -> Question:
    """Random tensors, with the shapes of each input in turn; `place` is the model's index in the plan."""
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
    return Question(
        f"{_SERVICE}/ModelInfer",
        lambda number: bodies[number % len(bodies)],
        lambda number, answer: Outcome(place, images(number), (), ()),
        images,
    )


def _shapes(
    tensor: pb.ModelMetadataResponse.TensorMetadata, given: Sequence[tuple[int, ...]], batch: int
) -> tuple[tuple[int, ...], ...]:
    told = tuple(tensor.shape)
    if tensor.datatype not in NAMES:
        raise BadConfig(f"input {tensor.name!r} is {tensor.datatype}, want one of {', '.join(NAMES)}")
    for shape in given:
        if len(shape) != len(told) or any(want not in (-1, side) for want, side in zip(told, shape, strict=True)):
            raise BadConfig(f"--shape {tensor.name}:{_written(shape)} does not fit {_written(told)}, -1 being any")
    if not given and min(told[1:], default=0) < 0:
        example = _written(tuple(side if side > 0 else 224 for side in (batch, *told[1:])))
        raise BadConfig(
            f"input {tensor.name!r} has free sides ({_written(told)}): give them, as in --shape {tensor.name}:{example}"
        )
    return tuple(given) or ((batch if told and told[0] < 0 else told[0], *told[1:]) if told else (),)


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
