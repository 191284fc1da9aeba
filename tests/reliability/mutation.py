"""Mutations with a seed: of plain bytes, and of PNG, JPEG and protobuf data, whose structure they keep or break."""

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from convoy.service.frontend.wire import FIXED32, FIXED64, LENGTH, VARINT, varint

EDGES = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32_767,
    32_768,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63,
    2**64 - 1,
)
_SIDES = (0, 1, 2, 8, 255, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
_CODES = (0x00, 0x01, 0xC0, 0xC2, 0xC4, 0xC8, 0xC9, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE, 0xFF)
_NAMES = (
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"eXIf",
    b"iCCP",
    b"zTXt",
    b"acTL",
    b"fdAT",
    b"\0\0\0\0",
    b"idat",
)

Mutator = Callable[[random.Random, bytes], bytes]


def scrambled(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, removed, repeated or inserted, wherever it may be."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 2, 4, 8, 64)))
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                del out[at:end]
            case 3:
                out[at:at] = out[at:end] * rng.choice((1, 2, 100))
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
            case 5:
                del out[at:]
            case 6:
                edge = rng.choice(EDGES)
                out[at : at + 4] = (edge & 0xFFFF_FFFF).to_bytes(4, rng.choice(("big", "little")))
            case _:
                out[at:end] = rng.randbytes(end - at)
    return bytes(out)


# PNG: chunks whose lengths and checksums are right, unless it is they that are changed.


def png(rng: random.Random, data: bytes) -> bytes:
    """The chunks of a PNG file changed, most of them with their checksums repaired."""
    signature, chunks = data[:8], _chunks(data)
    out = bytearray(signature)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(chunks))
        name, body = chunks[at]
        match rng.randrange(7):
            case 0:
                chunks[at] = (name, scrambled(rng, body))
            case 1:
                chunks[at] = (rng.choice(_NAMES), body)
            case 2:
                chunks.insert(rng.randrange(len(chunks) + 1), (name, body))
            case 3 if len(chunks) > 1:
                del chunks[at]
            case 4:
                chunks.insert(at, (rng.choice(_NAMES), zlib.compress(bytes(rng.choice((0, 100, 65_536, 1 << 20))))))
            case 5:
                chunks[0] = (b"IHDR", _header(rng, chunks[0][1]))
            case _:
                rng.shuffle(chunks)
    lies = rng.random() < 0.2
    for name, body in chunks:
        length = rng.choice(EDGES) & 0xFFFF_FFFF if lies and rng.random() < 0.3 else len(body)
        check = rng.getrandbits(32) if lies and rng.random() < 0.3 else zlib.crc32(body, zlib.crc32(name))
        out += struct.pack(">I", length) + name + body + struct.pack(">I", check)
    return bytes(out)


def _header(rng: random.Random, body: bytes) -> bytes:
    width, height, *rest = struct.unpack(">IIBBBBB", body[:13].ljust(13, b"\0"))
    width, height = (rng.choice((side, rng.choice(_SIDES))) for side in (width, height))
    rest = [rng.choice((value, value, rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)))) for value in rest]
    return struct.pack(">IIBBBBB", width, height, *rest)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found or [(b"IHDR", bytes(13))]


# JPEG: segments with their lengths, then the scan.


def jpeg(rng: random.Random, data: bytes) -> bytes:
    """The segments of a JPEG file changed, most of them with their lengths repaired."""
    segments, scan = _segments(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(segments))
        code, body = segments[at]
        match rng.randrange(8):
            case 0:
                segments[at] = (code, scrambled(rng, body)[:65_533])
            case 1:
                segments[at] = (rng.choice(_CODES), body)
            case 2:
                segments.insert(rng.randrange(len(segments) + 1), (code, body))
            case 3 if len(segments) > 1:
                del segments[at]
            case 4:
                frames = [place for place, (code, _) in enumerate(segments) if code in (0xC0, 0xC2)]
                place = rng.choice(frames or [at])
                code, body = segments[place]
                sides = struct.pack(">HH", *(rng.choice(_SIDES) & 0xFFFF for _ in range(2)))
                segments[rng.choice((place, place, at))] = (code, body[:1] + sides + body[5:])
            case 5:
                scan = scrambled(rng, scan)
            case 6:
                scan += b"".join(_segment(*segments[-1]) + scan[:40] for _ in range(rng.choice((1, 99, 101))))
            case _:
                rng.shuffle(segments)
    lies = rng.random() < 0.2
    parts = [_segment(code, body, rng.choice(EDGES) if lies and rng.random() < 0.3 else -1) for code, body in segments]
    return b"\xff\xd8" + b"".join(parts) + scan


def _segment(code: int, body: bytes, length: int = -1) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", (len(body) + 2 if length < 0 else length) & 0xFFFF) + body


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        code, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((code, data[at + 4 : at + 2 + length]))
        at += 2 + length
        if code == 0xDA:
            break
    return found or [(0xFE, b"")], data[at:]


# Protobuf: fields with their tags, kinds and lengths.


class Field(NamedTuple):
    """A field of a message: of kind VARINT a number, of kind LENGTH bytes or, if they may be a message, its fields."""

    number: int
    kind: int
    value: "int | bytes | list[Field | bytes]"


_LONGEST = 1 << 18
_DEPTHS = (10, 99, 101, 500)  # of nested messages; protobuf accepts 100
_TEXTS = (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"a\0b", b"\n\r\x1b[2J", "\u202e\U0001f600".encode(), b"x" * 5000)


def message(rng: random.Random, data: bytes) -> bytes:
    """The fields of an encoded message changed: left out, repeated, of another kind or length, deeper, or not UTF-8."""
    if rng.random() < 0.15:
        return scrambled(rng, data)
    tree = fields(data) or []
    for _ in range(rng.choice((1, 1, 2, 5))):
        _change(rng, _somewhere(rng, tree))
    out = encoded(tree)[:_LONGEST]
    return out[: rng.randrange(len(out) + 1)] if rng.random() < 0.05 else out


def fields(data: bytes, depth: int = 8) -> "list[Field | bytes] | None":
    """The fields of a message, and of those inside it up to a depth; None if it is none."""
    found: list[Field | bytes] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            value: int | bytes | list[Field | bytes]
            if kind == VARINT:
                value, at = _varint(data, at)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
                value, at = data[at : at + size], at + size
            elif kind == LENGTH:
                size, at = _varint(data, at)
                value, at = data[at : at + size], at + size
                value = (fields(value, depth - 1) if depth and 0 < size < 100_000 else None) or value
            else:
                return None
            if not number or at > len(data):
                return None
            found.append(Field(number, kind, value))
    except IndexError:
        return None
    return found


def encoded(tree: "Sequence[Field | bytes]") -> bytes:
    """The message with these fields; bytes among them are encoded already, rightly or not."""
    return b"".join(each if isinstance(each, bytes) else _field(each) for each in tree)


def _field(field: Field) -> bytes:
    tag = varint(field.number << 3 | field.kind)
    if isinstance(field.value, int):
        return tag + varint(field.value)
    value = encoded(field.value) if isinstance(field.value, list) else field.value
    return tag + (varint(len(value)) if field.kind == LENGTH else b"") + value


def _somewhere(rng: random.Random, tree: "list[Field | bytes]") -> "list[Field | bytes]":
    inner = [each.value for each in _whole(tree) if isinstance(each.value, list)]
    return _somewhere(rng, rng.choice(inner)) if inner and rng.random() < 0.6 else tree


def _whole(tree: "list[Field | bytes]") -> Iterator[Field]:
    return (each for each in tree if isinstance(each, Field))


def _change(rng: random.Random, tree: "list[Field | bytes]") -> None:  # noqa: PLR0912  one branch for each kind
    places = [place for place, each in enumerate(tree) if isinstance(each, Field)]
    if not places:
        tree.append(_alien(rng))
        return
    at = rng.choice(places)
    field = tree[at]
    assert isinstance(field, Field)
    plain = field.value if isinstance(field.value, bytes) else encoded([field])
    match rng.randrange(12):
        case 0:
            del tree[at]
        case 1:
            again = encoded([field])
            tree[at:at] = [again] * min(rng.choice((1, 2, 50, 1000)), _LONGEST // len(again))
        case 2:
            tree[at] = field._replace(number=rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 100, 2**29 - 1, 2**29)))
        case 3:
            tree[at] = varint(field.number << 3 | rng.randrange(8)) + plain
        case 4:
            tree[at] = Field(field.number, VARINT, rng.choice(EDGES))
        case 5:  # a length that is wrong
            length = max(0, rng.choice((len(plain) - 1, len(plain) + 1, *EDGES)))
            tree[at] = varint(field.number << 3 | LENGTH) + varint(length) + plain
        case 6:  # a number of more bytes than any number has
            tree[at] = varint(field.number << 3) + b"\x80" * rng.choice((1, 9, 10, 20)) + b"\x01"
        case 7:
            tree[at] = Field(field.number, LENGTH, rng.choice(_TEXTS))
        case 8:
            for _ in range(rng.choice(_DEPTHS)):
                plain = encoded([Field(field.number, LENGTH, plain)])[:_LONGEST]
            tree[at] = plain
        case 9:
            tree.insert(at, _alien(rng))
        case 10:
            tree[at] = Field(field.number, LENGTH, scrambled(rng, plain))
        case _:
            rng.shuffle(tree)


def _alien(rng: random.Random) -> "Field | bytes":
    number = rng.choice((1, 2, 15, 16, 999, 2**29 - 1))
    if rng.random() < 0.3:  # a group, open or closed
        return varint(number << 3 | rng.choice((3, 4))) * rng.choice((1, 2, 200))
    return Field(number, LENGTH, rng.randbytes(rng.choice((0, 1, 10, 1000))))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return value, at
