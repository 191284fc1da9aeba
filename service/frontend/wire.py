"""Reads large payloads of a message in place: protobuf would copy them into its own memory, and out of it again on each
access.

A message is a sequence of fields, each a tag (number and kind) and a value. A value that is bytes or a nested message
follows its length (protobuf's encoding, "Message Structure").
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from convoy.service.errors import BadRequest
from convoy.service.frontend.transport.interface import Data

NOTHING: Mapping[int, memoryview] = MappingProxyType({})
LARGE = 1 << 16  # bytes; copying less takes less time than finding it
_BYTES_PER_FIELD = 4096
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # kinds of values


class Parser:
    """Parser of one type of message. The payloads, if any, are at `path`, such as `images.raw.pixels`.

    One field on the path is repeated; a payload's number is the index of its entry.
    """

    def __init__(self, message: Descriptor, path: str | None) -> None:
        self._class = GetMessageClass(message)
        self._name = message.full_name
        self._numbers: list[int] = []
        self._counted = 0
        kind: Descriptor | None = message
        for depth, name in enumerate(path.split(".") if path else ()):
            assert kind is not None
            field = kind.fields_by_name[name]
            self._numbers.append(field.number)
            if field.is_repeated:
                self._counted = depth
            kind = field.message_type

    def parse(self, data: Data) -> tuple[Any, Mapping[int, memoryview]]:
        """Returns the message, and its large payloads by number: views of `data`, which the message has as empty bytes.

        Raises BadRequest.
        """
        rest, payloads = self._lifted(data)
        try:
            return self._class.FromString(rest), payloads  # type: ignore[arg-type]  # a bytearray too
        except Exception:  # protobuf's DecodeError, and what its C core raises on bad UTF-8
            raise BadRequest(f"request is not a {self._name} message") from None

    def _lifted(self, data: Data) -> tuple[Data, Mapping[int, memoryview]]:
        if len(data) < LARGE or not self._numbers:
            return data, NOTHING
        lifting = _Lifting(data, self._numbers, self._counted)
        try:
            rest = lifting.rest(0, len(data), 0)
        except (_AsItIs, IndexError):
            return data, NOTHING
        return (b"".join(rest), lifting.payloads) if lifting.payloads else (data, NOTHING)


def varint(value: int) -> bytes:
    """Encodes a number, 0 or more, as a value, a length or a tag."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(message: Any, field: str, kind: int) -> bytes:
    """Returns the encoded tag of a field; `message` is the descriptor of its message."""
    return varint(message.fields_by_name[field].number << 3 | kind)


def block(before: bytes, content: bytes) -> bytes:
    """Encodes bytes or a message as a field's value, after its tag `before`."""
    return before + varint(len(content)) + content


class _AsItIs(Exception):
    """Lifting payloads gains nothing for this message: protobuf parses all of it."""


class _Lifting:
    """One message, and the payloads lifted out of it so far."""

    def __init__(self, data: Data, numbers: list[int], counted: int) -> None:
        self.payloads: dict[int, memoryview] = {}
        self._data = data
        self._view = memoryview(data)
        self._numbers = numbers
        self._counted = counted
        self._entry = -1
        # A message with large payloads has few fields. The limit ends the loop early on one with many small fields.
        self._fields_left = 64 + len(data) // _BYTES_PER_FIELD

    def rest(self, at: int, end: int, depth: int) -> list[bytes | memoryview]:
        """Returns the message from `at` to `end`, without the payloads lifted out of it, in pieces."""
        data, view, wanted = self._data, self._view, self._numbers[depth]
        pieces: list[bytes | memoryview] = []
        kept = at
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _AsItIs
            start = at
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(data, start)
            kind = tag & 7
            if kind == LENGTH:
                size, at = _varint(data, at)
                at += size
                if tag >> 3 == wanted and at <= end:
                    inside = self._inside(at - size, at, depth)
                    pieces += [view[kept:start], varint(tag), varint(sum(map(len, inside))), *inside]
                    kept = at
            elif kind == VARINT:
                _, at = _varint(data, at)
            elif kind in (FIXED64, FIXED32):
                at += 8 if kind == FIXED64 else 4
            else:
                raise _AsItIs  # a group, which no client sends, or an unknown kind
            if depth == self._counted + 1 and at < end:
                raise _AsItIs  # an entry with two sources: protobuf decides which one counts
        if at > end:
            raise _AsItIs  # a field ends beyond its message
        return [*pieces, view[kept:end]]

    def _inside(self, at: int, end: int, depth: int) -> list[bytes | memoryview]:
        """Returns what remains of a field on the path."""
        if depth == self._counted:
            self._entry += 1
        if depth < len(self._numbers) - 1:
            return self.rest(at, end, depth + 1)
        # If a field occurs twice, the last one counts.
        self.payloads.pop(self._entry, None)
        if end - at < LARGE and not self.payloads:
            raise _AsItIs  # payloads of one message are usually alike, so the first one decides
        if end - at < LARGE:
            return [self._view[at:end]]
        self.payloads[self._entry] = self._view[at:end]
        return []


def _varint(data: Data, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        if shift > 63:
            raise _AsItIs  # longer than any valid number
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
    return value | byte << shift, at + 1
