"""The Open Inference Protocol over HTTP: JSON and binary tensors to and from the messages of gRPC's ModelInfer.

A body is JSON, followed by the bytes of each binary tensor in the order of the JSON, little-endian and without padding
(the protocol's extension `binary_tensor_data`).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from convoy.service.dtypes import NAMES
from convoy.service.errors import BadRequest, BadTensor, named
from convoy.service.frontend.rest import nested
from convoy.service.frontend.rest.plain import plain
from convoy.service.metadata import IMAGE
from convoy.service.pb import inference_pb2 as pb

_MOST_DIGITS = 18  # of a length in a header
_INT64 = 2**63
_SIZE, _BINARY, _BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_RESERVED = ("sequence_id", "sequence_start", "sequence_end", "headers")
_ONLY_BINARY = ("FP16", "BF16")

Parameter = bool | int | float | str


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _File(msgspec.Struct):
    b64: bytes


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Parameter] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[_Output] = []


_decoder = msgspec.json.Decoder(_Request)
_files_decoder = msgspec.json.Decoder(list[_File])


class Binary(NamedTuple):
    """Which outputs are answered as bytes: those with a word of their own, and whether the others are."""

    by_name: Mapping[str, bool]
    others: bool

    def wants(self, name: str) -> bool:
        """Returns whether an output is."""
        return self.by_name.get(name, self.others)


def json_length(header: bytes | None, body: bytes) -> int:
    """Returns how many bytes of a body are JSON, by its header `Inference-Header-Content-Length`. Raises BadRequest."""
    if header is None:
        return len(body)
    if not (header.isdigit() and len(header) <= _MOST_DIGITS and int(header) <= len(body)):
        shown = named(header.decode("latin-1"))
        raise BadRequest(
            f"inference-header-content-length is {shown}, want bytes of JSON from 0 to {len(body)}, the whole body"
        )
    return int(header)


def request(model: str, version: str, body: bytes, length: int) -> tuple[pb.ModelInferRequest, Binary]:
    """Returns the request in a body of which `length` bytes are JSON. Raises BadRequest, BadTensor."""
    asked = _decoded(body[:length])
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=asked.id)
    rest = memoryview(body)[length:]
    for tensor in asked.inputs:
        contents, rest = _contents(tensor, rest)
        _add_input(message, tensor, contents)
    if rest.nbytes:
        raise BadRequest(f"{rest.nbytes} bytes follow the binary inputs, want none: see {_SIZE}")
    by_name: dict[str, bool] = {}
    for output in asked.outputs:
        if _BINARY in output.parameters:
            by_name[output.name] = _flag(f"{_BINARY} of output {named(output.name)}", output.parameters.pop(_BINARY))
        added = message.outputs.add(name=output.name)
        _put_parameters(added.parameters, output.parameters, f"output {named(output.name)}")
    others = _flag(_BINARY_OUTPUT, asked.parameters.pop(_BINARY_OUTPUT, False))
    _put_parameters(message.parameters, asked.parameters, "the request")
    return message, Binary(by_name, others)


def raw_request(model: str, version: str, body: bytes, metadata: pb.ModelMetadataResponse) -> pb.ModelInferRequest:
    """Returns a request whose body is the one input of a model, whose shape its size decides: the pixels of an image or
    its file, which begins as a JPEG or PNG does. Raises BadRequest."""
    if len(metadata.inputs) != 1:
        raise BadRequest(f"model {named(model)} has {len(metadata.inputs)} inputs, want JSON that names them")
    (spec,) = metadata.inputs
    if spec.name == IMAGE and "task" in metadata.properties and body.startswith(_PICTURES):
        tensor = pb.ModelInferRequest.InferInputTensor(name=spec.name, datatype="BYTES", shape=[1])
        contents = len(body).to_bytes(4, "little") + body
        return pb.ModelInferRequest(
            model_name=model, model_version=version, inputs=[tensor], raw_input_contents=[contents]
        )
    # The batch axis, if it is free, is 1.
    shape = [1, *spec.shape[1:]] if spec.shape and spec.shape[0] == -1 else list(spec.shape)
    free = [place for place, side in enumerate(shape) if side == -1]
    size = np.dtype(NAMES[spec.datatype]).itemsize * math.prod(side for side in shape if side != -1)
    if len(free) > 1:
        raise BadRequest(f"input {named(spec.name)} has shape {list(spec.shape)}, want JSON that says which it is")
    if free and len(body) % size == 0:
        shape[free[0]] = len(body) // size
    return pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        inputs=[pb.ModelInferRequest.InferInputTensor(name=spec.name, datatype=spec.datatype, shape=shape)],
        raw_input_contents=[body],
    )


def response(answer: pb.ModelInferResponse, binary: Binary) -> tuple[bytes, int | None]:
    """Returns the body of an answer, and how many of its bytes are JSON; None: all.

    Raises BadRequest if an output has no JSON: one of numbers that are not finite, or of a datatype that has none.
    """
    outputs, parts = [], []
    for output, contents in zip(answer.outputs, answer.raw_output_contents, strict=True):
        parameters = _parameters(output.parameters)
        value: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if not contents and "shared_memory_region" in parameters:
            value["parameters"] = parameters
        elif binary.wants(output.name):
            value["parameters"] = parameters | {_SIZE: len(contents)}
            parts.append(contents)
        else:
            if parameters:
                value["parameters"] = parameters
            value["data"] = _data(output.name, output.datatype, contents)
        outputs.append(value)
    head = msgspec.json.encode(
        {
            "model_name": answer.model_name,
            "model_version": answer.model_version,
            "id": answer.id,
            "parameters": _parameters(answer.parameters),
            "outputs": outputs,
        }
    )
    return (b"".join([head, *parts]), len(head)) if parts else (head, None)


def _decoded(text: bytes) -> _Request:
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError as error:
        raise BadRequest(f"request is no JSON of an inference request: {error}") from None
    except RecursionError:
        raise BadRequest("request is nested too deeply") from None
    except ValueError:  # such as text that is no UTF-8
        raise BadRequest("request is no JSON in UTF-8") from None


def _contents(tensor: _Input, rest: memoryview) -> tuple[bytes | None, memoryview]:
    """Returns a tensor's bytes, None if they are elsewhere, and what follows in the body."""
    what = f"input {named(tensor.name)}"
    size = tensor.parameters.pop(_SIZE, None)
    sources = [size is not None, tensor.data is not msgspec.UNSET, "shared_memory_region" in tensor.parameters]
    if sum(sources) != 1:
        raise BadTensor(f"{what} has {sum(sources)} of data, {_SIZE} and shared_memory_region, want one of them")
    if size is not None:
        if not (type(size) is int and 0 <= size <= rest.nbytes):
            raise BadTensor(
                f"{_SIZE} of {what} is {size!r}, want bytes from 0 to {rest.nbytes}, which the body has left"
            )
        return rest[:size].tobytes(), rest[size:]
    if tensor.data is msgspec.UNSET:
        return None, rest
    return _encoded(what, tensor, bytes(tensor.data)), rest


def _encoded(what: str, tensor: _Input, data: bytes) -> bytes:
    if tensor.datatype == "BYTES":
        return _files(what, tensor, data)
    if tensor.datatype in _ONLY_BINARY:
        raise BadTensor(f"{what} is {tensor.datatype}, which JSON has no numbers for: send it as binary data")
    name = NAMES.get(tensor.datatype)
    if name is None:
        known = ", ".join(sorted(NAMES.keys() - _ONLY_BINARY))
        raise BadTensor(f"{what} has datatype {named(tensor.datatype)}, want one of {known}")
    values = nested.read(data, np.dtype(name), what)
    _check_count(what, tensor, values.size)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _files(what: str, tensor: _Input, data: bytes) -> bytes:
    """Returns files in Base64, `{"b64": ...}` each, as the protocol's BYTES."""
    try:
        files = [file.b64 for file in _files_decoder.decode(data)]
    except (msgspec.DecodeError, ValueError):
        raise BadTensor(f'{what} has other data than a list of {{"b64": "..."}}, want a file in Base64 each') from None
    _check_count(what, tensor, len(files))
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def _check_count(what: str, tensor: _Input, count: int) -> None:
    if any(side < 0 for side in tensor.shape) or math.prod(tensor.shape) != count:
        raise BadTensor(f"{what} has {count} values, want {math.prod(tensor.shape)} for shape {tensor.shape}")


def _add_input(message: pb.ModelInferRequest, tensor: _Input, contents: bytes | None) -> None:
    what = f"input {named(tensor.name)}"
    if not all(0 <= side < _INT64 for side in tensor.shape):
        raise BadTensor(f"{what} has a shape with sides out of range, want whole numbers from 0")
    added = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    _put_parameters(added.parameters, tensor.parameters, what)
    if contents is not None:
        message.raw_input_contents.append(contents)


def _put_parameters(out: Any, parameters: Mapping[str, Parameter], what: str) -> None:
    for name, value in parameters.items():
        if name in _RESERVED or name.startswith("triton_"):
            raise BadRequest(f"parameter {named(name)} of {what} is not offered")
        parameter = out[name]
        match value:
            case bool():
                parameter.bool_param = value
            case int() if -_INT64 <= value < _INT64:
                parameter.int64_param = value
            case float():
                parameter.double_param = value
            case str():
                parameter.string_param = value
            case _:
                raise BadRequest(f"parameter {named(name)} of {what} is {value}, want a number of 64 bits")


def _flag(what: str, value: Parameter) -> bool:
    if type(value) is not bool:
        raise BadRequest(f"{what} is {value!r}, want true or false")
    return value


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {name: next(iter(plain(value).values()), None) for name, value in sorted(parameters.items())}


def _data(name: str, datatype: str, contents: bytes) -> msgspec.Raw | list[str]:
    if datatype in _ONLY_BINARY:
        raise BadRequest(f"output {named(name)} is {datatype}, which JSON has no numbers for: ask for binary data")
    if datatype == "BYTES":
        return [text.decode(errors="replace") for text in _byte_strings(contents)]
    dtype = np.dtype(NAMES[datatype])
    values = np.frombuffer(contents, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise BadRequest(f"output {named(name)} has numbers that are not finite: ask for binary data")
    return msgspec.Raw(nested.write(values))


def _byte_strings(contents: bytes) -> Iterable[bytes]:
    place = 0
    while place < len(contents):
        size = int.from_bytes(contents[place : place + 4], "little")
        yield contents[place + 4 : place + 4 + size]
        place += 4 + size
