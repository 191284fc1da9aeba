"""An HTTP/2 client that sends any bytes, valid or not."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

import hpack

MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS = 4
SECONDS = 20.0

Pairs = Iterable[tuple[str, str]]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == RST_STREAM else self.payload[4:8], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(data: bytes, flag: int = 0) -> bytes:
    """A message of gRPC."""
    return bytes([flag]) + struct.pack(">I", len(data)) + data


def request(path: str = "/test.Test/Echo", *more: tuple[str, str], method: str = "POST") -> list[tuple[str, str]]:
    """The headers of a call."""
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]


class Raw:
    """A connection that has sent the HTTP/2 preface, unless `greet` is false. `source` is where it comes from."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        greet: bool = True,
        settings: dict[int, int] | None = None,
        source: str | None = None,
    ) -> None:
        self._acknowledges = greet
        self.socket = socket.create_connection(address, SECONDS, None if source is None else (source, 0))
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        if greet:
            payload = b"".join(struct.pack(">HI", *pair) for pair in (settings or {}).items())
            self.send(MAGIC + frame(SETTINGS, payload=payload))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def pour(self, data: bytes, times: int) -> None:
        """Sends this so often, or until the server has closed the connection."""
        with contextlib.suppress(OSError):
            for _ in range(times):
                self.send(data)

    def headers(self, stream: int, pairs: Pairs, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, flags, stream, self.encoder.encode(pairs))

    def call(self, stream: int, data: bytes = b"hello", path: str = "/test.Test/Echo") -> None:
        """A call with one message."""
        self.send(self.headers(stream, request(path)) + frame(DATA, END_STREAM, stream, message(data)))

    def upload(self, stream: int, data: bytes, path: str) -> None:
        """A call with the beginning of its request, as the server's windows allow; the server must have greeted."""
        self.send(self.headers(stream, request(path)))
        windows = {0: 65_535, stream: 4 << 20}
        for at in range(0, len(data), 1 << 18):
            piece = data[at : at + (1 << 18)]
            while min(windows.values()) < len(piece):
                update = self.until(WINDOW_UPDATE)
                windows[update.stream] += int.from_bytes(update.payload, "big")
            self.send(frame(DATA, 0, stream, piece))
            windows = {each: window - len(piece) for each, window in windows.items()}

    def read(self) -> Frame | None:
        """The next frame; None at the end of the connection. Raises TimeoutError."""
        while len(self._received) < 9 or len(self._received) < 9 + int.from_bytes(self._received[:3], "big"):
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not more:
                return None
            self._received += more
        length = int.from_bytes(self._received[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
        found = Frame(kind, flags, stream, self._received[9 : 9 + length])
        self._received = self._received[9 + length :]
        if (kind, flags) == (SETTINGS, 0) and self._acknowledges:
            with contextlib.suppress(OSError):
                self.send(frame(SETTINGS, ACK))
        return found

    def until(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of this kind, on this stream."""
        while (found := self.read()) is not None:
            if found.kind == HEADERS:
                self.last_headers = dict(self._decoder.decode(found.payload))
            if found.kind == kind and stream in (None, found.stream):
                return found
        raise AssertionError(f"connection ended without a frame of kind {kind}")

    def decode(self, headers: Frame) -> dict[str, str]:
        """The headers in a frame. Those of all frames have to be decoded, in order."""
        return dict(self._decoder.decode(headers.payload))

    def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """The data and the last headers of the answer on a stream."""
        data = b""
        while (found := self.read()) is not None:
            if found.kind == HEADERS:
                pairs = dict(self._decoder.decode(found.payload))
            if found.stream != stream:
                continue
            if found.kind == DATA:
                data += found.payload
            if found.kind == RST_STREAM:
                raise AssertionError(f"stream was reset: {found.code}")
            if found.flags & END_STREAM and found.kind in (HEADERS, DATA):
                return data, pairs
        raise AssertionError(f"connection ended without an answer on stream {stream}")

    def status(self, stream: int) -> str:
        """The gRPC status of the answer on a stream."""
        return self.answer(stream)[1]["grpc-status"]

    def wait_for_end(self, seconds: float = SECONDS) -> int | None:
        """Waits until the server closes the connection; the code of its last GOAWAY."""
        code, until = None, time.monotonic() + seconds
        while (found := self.read()) is not None:
            if found.kind == GOAWAY:
                code = found.code
            assert time.monotonic() < until, "server did not close the connection"
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # also where another thread reads
        self.socket.close()
