"""Encodes answers directly as bytes: protobuf would first create an object per label or time, which takes longer than
all other work on a small request.

The bytes follow vision.proto and inference.proto (protobuf's encoding, "Message Structure"), which also define the
field numbers.
"""

import struct
from collections.abc import Iterable, Sequence

from convoy.service import metrics
from convoy.service.dtypes import DATATYPES
from convoy.service.frontend.wire import FIXED32, FIXED64, LENGTH, VARINT, block, tag, varint
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import TensorSpec, Version

_FLOAT = struct.Struct("<f")


_RESPONSE = pb.ClassifyResponse.DESCRIPTOR
_RESULT = pb.ClassifyResult.DESCRIPTOR
_MODEL = tag(_RESPONSE, "model", LENGTH)
_VERSION = tag(_RESPONSE, "version", VARINT)
_RESULTS = tag(_RESPONSE, "results", LENGTH)
_CLASSIFICATION = tag(_RESULT, "classification", LENGTH)
_TIMINGS = tag(_RESULT, "timings", LENGTH)
_LABELS = tag(pb.Classification.DESCRIPTOR, "labels", LENGTH)
_INDEX = tag(pb.Label.DESCRIPTOR, "index", VARINT)
_NAME = tag(pb.Label.DESCRIPTOR, "name", LENGTH)
_PROBABILITY = tag(pb.Label.DESCRIPTOR, "probability", FIXED32)
_BATCH_SIZE = tag(pb.Timings.DESCRIPTOR, "batch_size", VARINT)
_STAGES = [tag(pb.Timings.DESCRIPTOR, f"{stage}_seconds", FIXED64) for stage in (*metrics.STAGES, "total")]
_SECONDS = struct.Struct("<" + "sd" * len(_STAGES))
assert all(len(each) == 1 for each in _STAGES)


class Labels:
    """A model's labels, each encoded up to its probability, the only part that changes."""

    def __init__(self, names: Sequence[str]) -> None:
        self._heads = [self._head(index, name.encode()) for index, name in enumerate(names)]

    def _head(self, index: int, name: bytes) -> bytes:
        content = _INDEX + varint(index) + block(_NAME, name) + _PROBABILITY
        return _LABELS + varint(len(content) + _FLOAT.size) + content

    def result(self, indices: Iterable[int], probabilities: Iterable[float], timings: bytes) -> bytes:
        """Encodes a ClassifyResult: the labels of these indices, and `timings`, an encoded pb.Timings."""
        heads, pack = self._heads, _FLOAT.pack
        labels = b"".join([
            heads[index] + pack(probability) for index, probability in zip(indices, probabilities, strict=True)
        ])  # fmt: skip
        return block(_CLASSIFICATION, labels) + block(_TIMINGS, timings)


def timings(seconds: Sequence[float], batch_size: int) -> bytes:
    """Encodes pb.Timings: seconds per stage in the order of metrics.STAGES, and in total."""
    pairs = [part for pair in zip(_STAGES, seconds, strict=True) for part in pair]
    return _SECONDS.pack(*pairs) + _BATCH_SIZE + varint(batch_size)


def response(model: str, version: int, results: Sequence[bytes]) -> bytes:
    """Encodes a ClassifyResponse of encoded results."""
    head = block(_MODEL, model.encode()) + _VERSION + varint(version)
    return b"".join([head, *(block(_RESULTS, result) for result in results)])


_INFER = inference_pb2.ModelInferResponse.DESCRIPTOR
_ENTRY = _INFER.fields_by_name["parameters"].message_type
_PARAMETER = inference_pb2.InferParameter.DESCRIPTOR
_MODEL_NAME = tag(_INFER, "model_name", LENGTH)
_MODEL_VERSION = tag(_INFER, "model_version", LENGTH)
_ID = tag(_INFER, "id", LENGTH)
_PARAMETERS = tag(_INFER, "parameters", LENGTH)
_OUTPUTS = tag(_INFER, "outputs", LENGTH)
_CONTENTS = tag(_INFER, "raw_output_contents", LENGTH)
_KEY, _VALUE = tag(_ENTRY, "key", LENGTH), tag(_ENTRY, "value", LENGTH)


def _parameter(name: str, value: bytes) -> bytes:
    return block(_PARAMETERS, block(_KEY, name.encode()) + block(_VALUE, value))


def _double_parameter(name: str) -> bytes:
    """Returns a parameter up to its value, the last 8 bytes."""
    return _parameter(name, tag(_PARAMETER, "double_param", FIXED64) + bytes(8))[:-8]


_INFER_STAGES = [_double_parameter(f"convoy_{stage}_seconds") for stage in (*metrics.STAGES, "total")]
_INFER_SECONDS = struct.Struct("<" + "".join(f"{len(head)}sd" for head in _INFER_STAGES))


def infer_timings(seconds: Sequence[float], batch_size: int) -> bytes:
    """Encodes the parameters of a ModelInferResponse that have the times: see `timings`."""
    pairs = [part for pair in zip(_INFER_STAGES, seconds, strict=True) for part in pair]
    size = tag(_PARAMETER, "int64_param", VARINT) + varint(batch_size)
    return _INFER_SECONDS.pack(*pairs) + _parameter("convoy_batch_size", size)


def infer_output(spec: TensorSpec, shape: Sequence[int]) -> bytes:
    """Encodes the description of an output of a ModelInferResponse."""
    kind = inference_pb2.ModelInferResponse.InferOutputTensor
    return block(_OUTPUTS, kind(name=spec.name, datatype=DATATYPES[spec.dtype], shape=shape).SerializeToString())


def infer_response(
    version: Version, request_id: str, times: bytes, outputs: Sequence[bytes], contents: Sequence[bytes]
) -> bytes:
    """Encodes a ModelInferResponse of encoded parts, and the contents of each output."""
    head = block(_MODEL_NAME, version.model.encode()) + block(_MODEL_VERSION, str(version.version).encode())
    id_ = block(_ID, request_id.encode()) if request_id else b""
    return b"".join([head, id_, times, *outputs, *(block(_CONTENTS, each) for each in contents)])
