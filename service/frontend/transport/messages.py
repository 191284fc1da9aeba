"""What gRPC puts into HTTP/2: messages in DATA frames, timeouts, compression, status and metadata in headers."""

import base64
import zlib
from collections.abc import Iterable

from convoy.service.frontend.status import Code
from convoy.service.frontend.transport.interface import LARGE, LEAST_COMPRESSED, Data, Land, Landing

ENCODINGS = (b"identity", b"deflate", b"gzip")
PREFIX = 5  # bytes: a flag, and the length of the message
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}  # zlib's: with the header of gzip, or its own
_LEVEL = 1  # of zlib. Class maps shrink to a thirtieth; higher levels take three times as long for what little is left.
_AT_ONCE = 1 << 16  # bytes allocated for a message before any of them has arrived
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MOST_DIGITS = 8
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}  # printable ASCII without the percent sign


class Refused(Exception):
    """A call that ends here, with its status."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Assembler:
    """Puts the messages of one call together from chunks that end anywhere.

    The first large one lands if `land` is given: then it is a Landing, which the owner of the assembler must release.
    """

    __slots__ = (
        "_at_once",
        "_body",
        "_compressed",
        "_encoding",
        "_filled",
        "_head",
        "_land",
        "_limit",
        "_size",
        "landing",
        "rest",
    )

    def __init__(self, limit: int, encoding: bytes, land: Land | None = None) -> None:
        self._limit = limit  # bytes of a message, also once it is inflated
        self._encoding = encoding
        self.rest = b""  # of the last chunk, where it has more messages than were asked for
        self.landing: Landing | None = None
        self._land = land
        self._at_once = limit if land is None else min(limit, LARGE - 1)  # bytes of a message that cannot land
        self._head = b""
        self._body: bytearray | None = None  # of the message that is arriving; None: it lands
        self._size = 0
        self._filled = 0
        self._compressed = False

    @property
    def inside(self) -> bool:
        """Whether a message has begun and is not complete."""
        return bool(self._head)

    @property
    def pending(self) -> int:
        """Bytes of a message that is not complete."""
        return self._filled if len(self._head) == PREFIX else 0

    def feed(self, chunk: bytes, most: int = 2) -> list[Data | Landing]:
        """Returns the messages that this chunk completes, at most `most`. Raises Refused.

        The chunk may be any buffer whose slices are bytes.
        """
        if not self._head and len(chunk) >= PREFIX:
            size = int.from_bytes(chunk[1:PREFIX], "big")
            if size + PREFIX == len(chunk) and chunk[:1] == b"\0" and size <= self._at_once:
                return [chunk[PREFIX:]]  # by far the most frequent: one chunk, one message
        elif self._body is not None and self._filled + len(chunk) < self._size:
            # Nor should crumbs be dear, of which slow callers send many.
            self._add(memoryview(chunk), self._body)
            self.rest = b""
            return []
        return self._cut(chunk, most)

    def release(self) -> None:
        """Ends the use of a message that has landed, or is landing. A second call does nothing."""
        if self.landing is not None:
            landing, self.landing = self.landing, None
            landing.release()

    def drop(self) -> None:
        """Forgets the message that is not complete."""
        if self._head:
            self.release()
        self._body, self._head = None, b""

    def _cut(self, chunk: bytes, most: int) -> list[Data | Landing]:
        found: list[Data | Landing] = []
        at, end = 0, len(chunk)
        while at < end and len(found) < most:
            if len(self._head) < PREFIX:
                piece = chunk[at : at + PREFIX - len(self._head)]
                self._head += piece
                at += len(piece)
                if len(self._head) < PREFIX:
                    break
                self._begin()
                if self._land is not None and self._size >= LARGE and not self._compressed:
                    self.landing, self._land = self._land(self._size), None
                elif end - at >= self._size:
                    found.append(self._plain(chunk[at : at + self._size]))
                    at += self._size
                    self._head = b""
                    continue
                else:
                    self._body = place(self._size)
            more = min(end - at, self._size - self._filled)
            self._append(memoryview(chunk)[at : at + more])
            at += more
            if self._filled == self._size:
                body, self._body, self._head = self._body, None, b""
                if body is not None:
                    found.append(self._plain(body))
                elif self.landing is not None:
                    found.append(self.landing)
        self.rest = chunk[at:]
        return found

    def _begin(self) -> None:
        flag, self._size, self._filled = self._head[0], int.from_bytes(self._head[1:], "big"), 0
        if flag > 1:
            raise Refused(Code.INTERNAL, f"compressed flag of a message is {flag}, want 0 or 1")
        self._compressed = flag == 1
        if self._compressed and self._encoding == b"identity":
            raise Refused(Code.INTERNAL, "message is compressed, but the call has no grpc-encoding")
        if self._size > self._limit:
            raise Refused(Code.RESOURCE_EXHAUSTED, f"message has {self._size} bytes, want at most {self._limit}")

    def _append(self, piece: memoryview) -> None:
        if self._body is None:
            assert self.landing is not None
            used = self.landing.write(piece)
            if used == len(piece):
                self._filled += used
                return
            self._body, self._filled = place(self._size), 0
            self._append(memoryview(self.landing.so_far()))
            self.release()
            piece = piece[used:]
        self._add(piece, self._body)

    def _add(self, piece: memoryview, body: bytearray) -> None:
        end = self._filled + len(piece)
        if end <= len(body):
            body[self._filled : end] = piece
        else:
            body += piece
        self._filled = end

    def _plain(self, data: Data) -> Data:
        return inflated(data, self._encoding, self._limit) if self._compressed else data


def place(length: int) -> bytearray:
    """Returns the memory for a message of this length; if it is shorter, it grows as the message arrives.

    A long message is not allocated in advance: five bytes of a caller would cost as much work as the whole message.
    """
    return bytearray(length) if length <= _AT_ONCE else bytearray()


def inflated(data: Data, encoding: bytes, limit: int) -> bytes:
    """Returns the message that a caller has compressed. Raises Refused, without inflating more than `limit`."""
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        message = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise Refused(Code.INTERNAL, f"message is not {encoding.decode()}") from None
    if len(message) > limit:
        raise Refused(Code.RESOURCE_EXHAUSTED, f"message has more than {limit} bytes once it is inflated")
    if not inflater.eof or inflater.unused_data:
        raise Refused(Code.INTERNAL, f"message is not {encoding.decode()}")
    return message


def accepted(offered: bytes, wanted: str) -> bytes:
    """Returns the encoding of a call's answers: the wanted one if the caller's grpc-accept-encoding offers it."""
    name = wanted.encode()
    return name if name in (each.strip() for each in offered.split(b",")) else b"identity"


def framed_for(message: bytes, encoding: bytes) -> list[bytes]:
    """As `framed`, compressed if the message is not short and that makes it shorter."""
    if encoding == b"identity" or len(message) < LEAST_COMPRESSED:
        return framed(message)
    deflater = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[encoding])
    packed = deflater.compress(message) + deflater.flush()
    return framed(packed, b"\1") if len(packed) < len(message) else framed(message)


def framed(message: bytes, flag: bytes = b"\0") -> list[bytes]:
    """Returns a message with its prefix, in pieces to be sent one after the other."""
    prefix = flag + len(message).to_bytes(4, "big")
    # Joining a small one takes less time than sending two pieces.
    return [prefix + message] if len(message) < 1 << 16 else [prefix, message]


def seconds(timeout: bytes) -> float:
    """Returns the value of grpc-timeout. Raises Refused."""
    digits, unit = timeout[:-1], timeout[-1:]
    if not (digits.isdigit() and len(digits) <= _MOST_DIGITS and unit in _SECONDS):
        shown = timeout[:32].decode("ascii", "backslashreplace")
        raise Refused(Code.INTERNAL, f"grpc-timeout is {shown!r}, want 1 to 8 digits and one of H M S m u n")
    return int(digits) * _SECONDS[unit]


def status_headers(
    code: Code, message: str, pairs: Iterable[tuple[str, str | bytes]] = ()
) -> list[tuple[bytes, bytes]]:
    """Returns a status with its metadata as headers; bytes are those of a `-bin` name."""
    found = [(b"grpc-status", b"%d" % code)]
    if message:
        found.append((b"grpc-message", percent_encoded(message)))
    for name, value in pairs:
        binary = isinstance(value, bytes)
        found.append((name.encode(), base64.b64encode(value).rstrip(b"=") if binary else value.encode()))  # type: ignore[union-attr, arg-type]
    return found


def percent_encoded(text: str) -> bytes:
    """Encodes the message of a status."""
    data = text.encode(errors="replace")
    if text.isascii() and text.isprintable() and b"%" not in data:
        return data
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in data)
