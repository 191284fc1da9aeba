"""Finds the external data that an ONNX file names, without onnx, and before onnxruntime opens any of it.

Only the fields that lead to a tensor are followed. What is not understood is refused, never passed over: onnxruntime
might understand it.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from convoy.service.errors import BadModelFile

# Numbers of the fields that are followed, and the kind of message that each contains (onnx.proto).
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MOST_DEPTH = 200  # of messages inside each other; protobuf itself refuses files that are deeper than 100


class _Message(NamedTuple):
    kind: str
    begin: int
    end: int
    depth: int


def locations(file: Path) -> set[str]:
    """The names of the external data of a model file, as they stand in it. Raises BadModelFile, and OSError."""
    if not file.stat().st_size:
        return set()  # onnxruntime reports what is wrong with it
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = set()
        left = [_Message("model", 0, len(data), 0)]
        while left:
            message = left.pop()
            if message.depth > _MOST_DEPTH:
                raise BadModelFile("its messages are too deep inside each other")
            if message.kind == "entry":
                key, value = _entry(data, message)
                if key == b"location":
                    found.add(value.decode(errors="replace"))
                continue
            kinds = _FIELDS[message.kind]
            for number, begin, end in _fields(data, message):
                if number in kinds:
                    left.append(_Message(kinds[number], begin, end, message.depth + 1))
        return found


def _entry(data: mmap.mmap, message: _Message) -> tuple[bytes, bytes]:
    """A StringStringEntryProto: key and value, of which the last of each counts."""
    values = {1: b"", 2: b""}
    for number, begin, end in _fields(data, message):
        values[number] = data[begin:end]
    return values[1], values[2]


def _fields(data: mmap.mmap, message: _Message) -> Iterator[tuple[int, int, int]]:
    """The fields of variable length in a message: number, begin and end of the content."""
    at, end = message.begin, message.end
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire in _FIXED:
            at += _FIXED[wire]
        elif wire == _LENGTH:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise BadModelFile("it is no ONNX file, or is cut off")
            yield tag >> 3, at, at + length
            at += length
        else:  # groups, which ONNX does not have
            raise BadModelFile("it is no ONNX file")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise BadModelFile("it is no ONNX file, or is cut off")
