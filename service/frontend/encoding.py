"""Encodes the answer to Classify directly as bytes: protobuf would first create an object per label, which takes longer
than all other work on an image.

The bytes follow vision.proto (protobuf's encoding, "Message Structure"), which also defines the field numbers.
"""

import struct
from collections.abc import Iterable, Sequence

from convoy.service import metrics
from convoy.service.frontend.wire import FIXED32, FIXED64, LENGTH, VARINT, block, tag, varint
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

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
