"""Reads large payloads of a message in place: protobuf would copy them into its own memory, and out of it again on each
access.

A message is a sequence of fields, each a tag (number and kind) and a value. A value that is bytes or a nested message
follows its length (protobuf's encoding, "Message Structure").
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from convoy.service.errors import BadRequest
from convoy.service.frontend.transport.interface import LARGE, Data, Landing

NOTHING: Mapping[int, memoryview] = MappingProxyType({})
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # kinds of values
_BYTES_PER_FIELD = 4096
_LONGEST_HEAD = 1 << 16  # bytes before the first large payload
_AHEAD = 64  # bytes read at once in search of the next field: any tag and length, and some small fields


class Parser:
    """Parser of one type of message. The payloads, if any, are at `path`, such as `images.raw.pixels`.

    One field on the path is repeated; a payload's number is the index of its entry.
    """

    def __init__(self, message: Descriptor, path: str | None) -> None:
        self.has_payloads = path is not None
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

    def parse(self, data: Data | Landing) -> tuple[Any, Mapping[int, memoryview]]:
        """Returns the message, and its large payloads by number: views of where they have arrived. The message has them
        as empty bytes.

        Raises BadRequest.
        """
        rest, payloads = self._lifted(data) if len(data) >= LARGE and self._numbers else (data, NOTHING)
        try:
            return self._class.FromString(rest), payloads  # type: ignore[arg-type]  # a bytearray too
        except Exception:  # protobuf's DecodeError, and what its C core raises on bad UTF-8
            raise BadRequest(f"request is not a {self._name} message") from None

    def lifting(self, size: int, put: Callable[[int, memoryview], None]) -> "Lifting":
        """Returns what lifts the payloads out of a message of `size` bytes: see Lifting."""
        return Lifting(size, self._numbers, self._counted, put)

    def _lifted(self, data: Data | Landing) -> tuple[Data, Mapping[int, memoryview]]:
        if not isinstance(data, bytes | bytearray):
            return data.lifted()
        payloads: dict[int, memoryview] = {}
        lifting = self.lifting(len(data), payloads.__setitem__)
        lifting.write(memoryview(data))
        rest = lifting.message()
        return (data, NOTHING) if rest is None else (rest, payloads)


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


class AsItIs(Exception):
    """Lifting payloads gains nothing for this message, or is not possible: protobuf parses all of it."""


class _Open:
    """A field on the path whose end has not been reached. Positions count the bytes of the whole message."""

    __slots__ = ("begin", "end", "left", "length_at")

    def __init__(self, begin: int, end: int, length_at: int) -> None:
        self.begin = begin
        self.end = end
        self.length_at = length_at  # where its length is, in the message without payloads
        self.left = end - begin  # bytes without the payloads


class Lifting:
    """Takes the large payloads out of a message that arrives in pieces of any size.

    `put` accepts the pieces of the payloads, each with the number of its payload, and may raise AsItIs. `sizes` has the
    bytes of each payload by number, in the order of the message.
    """

    def __init__(self, size: int, numbers: list[int], counted: int, put: Callable[[int, memoryview], None]) -> None:
        self.rest = bytearray()  # what has arrived, without payloads; lengths are still those of the whole message
        self.sizes: dict[int, int] = {}
        self._numbers = numbers
        self._counted = counted
        self._put = put
        self._open = [_Open(0, size, 0)]
        self._at = 0  # in `rest`: of the next field, which may not have arrived
        self._lifted = 0  # bytes of payloads before it
        self._missing = 0  # bytes of the last payload that have not arrived
        self._entry = -1
        self._cuts: list[int] = []  # where payloads are missing in `rest`
        self._lengths: dict[int, int] = {}  # that change, by where they are in `rest`
        self._given_up = False
        # A message with large payloads has few fields. The limit ends the loop early on one with many small fields.
        self._fields_left = 64 + size // _BYTES_PER_FIELD

    def write(self, piece: memoryview) -> int:
        """Accepts the next bytes of the message. Returns their number; fewer than there are if it has given up."""
        at = 0
        while at < len(piece) and not self._given_up:
            at += self._lift(piece[at:]) if self._missing else self._read(piece[at:])
        return at

    def message(self) -> bytearray | None:
        """Returns the complete message without the payloads; None if there are none, or it is not a message."""
        if self._given_up or self._missing or not self.sizes or not self._find():
            return None
        message = bytearray(self.rest)
        for at, value in self._lengths.items():
            _overwrite(message, at, value)
        return message

    def so_far(self, payloads: memoryview) -> bytearray:
        """Returns all bytes that have been accepted; `payloads` are those of the payloads, one behind the other."""
        whole, begin, at = bytearray(), 0, 0
        for cut, size in zip(self._cuts, self.sizes.values(), strict=True):
            whole += self.rest[begin:cut]
            whole += payloads[at : at + size]
            begin, at = cut, at + size
        return whole + self.rest[begin:]

    def _lift(self, piece: memoryview) -> int:
        part = piece[: self._missing]
        try:
            self._put(self._entry, part)
        except AsItIs:
            self._given_up = True
            return 0
        self._missing -= len(part)
        return len(part)

    def _read(self, piece: memoryview) -> int:
        part = piece[: max(0, self._at - len(self.rest)) + _AHEAD]
        self.rest += part
        try:
            self._find()
        except AsItIs:
            self._given_up = True
        if not self._missing:
            return len(part)
        beyond = len(self.rest) - self._at  # the payload begins within the part
        del self.rest[self._at :]
        return len(part) - beyond

    def _find(self) -> bool:
        """Goes on to the next large payload, or as far as fields have arrived. Returns whether the message is over."""
        while True:
            if self._at > _LONGEST_HEAD and not self.sizes:
                raise AsItIs
            position = self._at + self._lifted
            while position == self._open[-1].end:
                if len(self._open) == 1:
                    return True
                self._open.pop()
            if self._at >= len(self.rest):
                return False
            if len(self._open) == self._counted + 2 and position != self._open[-1].begin:
                raise AsItIs  # an entry with two sources: protobuf decides which one counts
            try:
                number, length_at, begin, end = _field(self.rest, self._at)
            except IndexError:
                return False  # the rest of its tag and length has not arrived
            self._fields_left -= 1
            if end + self._lifted > self._open[-1].end or not self._fields_left:
                raise AsItIs
            self._at = end
            if number == self._numbers[len(self._open) - 1] and length_at and self._enter(length_at, begin, end):
                return False

    def _enter(self, length_at: int, begin: int, end: int) -> bool:
        """Enters a field on the path. Returns whether it is a large payload."""
        depth = len(self._open) - 1
        if depth == self._counted:
            self._entry += 1
        if depth < len(self._numbers) - 1:
            self._open.append(_Open(begin + self._lifted, end + self._lifted, length_at))
            self._at = begin
            return False
        size = end - begin
        if self._entry in self.sizes or (size < LARGE and not self.sizes):
            raise AsItIs  # the last of two counts; and payloads are usually alike, so the first one decides
        if size < LARGE:
            return False
        self._lengths[length_at] = 0
        for field in self._open[1:]:
            field.left -= size
            self._lengths[field.length_at] = field.left
        self._cuts.append(begin)
        self.sizes[self._entry] = self._missing = size
        self._lifted += size
        self._at = begin
        return True


def _field(data: bytearray, at: int) -> tuple[int, int, int, int]:
    """Returns the number of the field at `at`, and where its length is (0: it has none), where its value begins, and
    where it ends. Raises IndexError if the data ends before the value."""
    tag, begin = _varint(data, at)
    number, kind = tag >> 3, tag & 7
    if kind == LENGTH:
        length, value = _varint(data, begin)
        return number, begin, value, value + length
    if kind == VARINT:
        return number, 0, begin, _varint(data, begin)[1]
    if kind in (FIXED64, FIXED32):
        return number, 0, begin, begin + (8 if kind == FIXED64 else 4)
    raise AsItIs  # a group, which no client sends, or an unknown kind


def _overwrite(data: bytearray, at: int, value: int) -> None:
    """Replaces a number by a smaller one, in as many bytes: protobuf reads leading zeros."""
    while data[at] >= 0x80:
        data[at] = 0x80 | value & 0x7F
        value >>= 7
        at += 1
    data[at] = value


def _varint(data: bytearray, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        if shift > 63:
            raise AsItIs  # longer than any valid number
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
    return value | byte << shift, at + 1
