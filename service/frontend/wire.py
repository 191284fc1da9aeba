"""Large payloads read from a message where they lie: protobuf would copy them into its own memory, and out of it again
each time they are asked for.

A message is a row of fields, each a tag (number and kind) and a value; where the value is bytes or a message of its
own, its length comes first (protobuf's encoding, "Message Structure").
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from convoy.service.errors import BadRequest

NOTHING: Mapping[int, memoryview] = MappingProxyType({})
LARGE = 1 << 16  # bytes: what is smaller is copied in less time than it takes to look for it
_BYTES_PER_FIELD = 4096
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # kinds of values


class Parser:
    """Parses messages of one kind. Their payloads, if they have any, are at `path`, such as `images.raw.pixels`.

    One field on the path is repeated: a payload's number counts its entries.
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

    def parse(self, data: bytes) -> tuple[Any, Mapping[int, memoryview]]:
        """The message, and its large payloads by their number: views of `data`, where the message has empty bytes.

        Raises BadRequest.
        """
        rest, payloads = self._lifted(data)
        try:
            return self._class.FromString(rest), payloads
        except Exception:  # protobuf's DecodeError, and what its C core raises on bad UTF-8
            raise BadRequest(f"request is not a {self._name} message") from None

    def _lifted(self, data: bytes) -> tuple[bytes, Mapping[int, memoryview]]:
        if len(data) < LARGE or not self._numbers:
            return data, NOTHING
        lifting = _Lifting(data, self._numbers, self._counted)
        try:
            rest = lifting.rest(0, len(data), 0)
        except (_AsItIs, IndexError):
            return data, NOTHING
        return (b"".join(rest), lifting.payloads) if lifting.payloads else (data, NOTHING)


def varint(value: int) -> bytes:
    """A number from 0 on as a value, a length or a tag."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(message: Any, field: str, kind: int) -> bytes:
    """What stands before the value of a field of a message, of which this is the descriptor."""
    return varint(message.fields_by_name[field].number << 3 | kind)


def block(before: bytes, content: bytes) -> bytes:
    """Bytes or a message as a field's value, behind its tag."""
    return before + varint(len(content)) + content


class _AsItIs(Exception):
    """Nothing is gained by a look at this message: protobuf shall have all of it."""


class _Lifting:
    """One message, and what has been lifted out of it up to now."""

    def __init__(self, data: bytes, numbers: list[int], counted: int) -> None:
        self.payloads: dict[int, memoryview] = {}
        self._data = data
        self._view = memoryview(data)
        self._numbers = numbers
        self._counted = counted
        self._entry = -1
        # What has large payloads has few fields: of a message of many small ones the loop would never see the end.
        self._fields_left = 64 + len(data) // _BYTES_PER_FIELD

    def rest(self, at: int, end: int, depth: int) -> list[bytes | memoryview]:
        """The message that lies from `at` to `end` without what is lifted out of it, in pieces."""
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
                raise _AsItIs  # a group, which nobody sends, or nothing that there is
            if depth == self._counted + 1 and at < end:
                raise _AsItIs  # an entry with two sources: which of them counts, protobuf knows
        if at > end:
            raise _AsItIs  # a field ends beyond its message
        return [*pieces, view[kept:end]]

    def _inside(self, at: int, end: int, depth: int) -> list[bytes | memoryview]:
        """What stays of a field on the path."""
        if depth == self._counted:
            self._entry += 1
        if depth < len(self._numbers) - 1:
            return self.rest(at, end, depth + 1)
        # Of a field that comes twice the last one counts.
        self.payloads.pop(self._entry, None)
        if end - at < LARGE and not self.payloads:
            raise _AsItIs  # the payloads of one message are usually alike: the first one tells
        if end - at < LARGE:
            return [self._view[at:end]]
        self.payloads[self._entry] = self._view[at:end]
        return []


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        if shift > 63:
            raise _AsItIs  # no number is so long
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
    return value | byte << shift, at + 1
