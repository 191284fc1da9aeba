"""R1: sessions of HTTP/2 with valid and broken frames: each ends or is answered, and nothing is told that is secret."""

import gzip
import random
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import hpack

from tests.reliability import leaks, mutation
from tests.reliability.mutation import EDGES
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.samples import METHODS, requests
from tests.reliability.siege import SECONDS, Siege, text_of, transport, with_a_death
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAGIC,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Raw,
    frame,
    message,
)

_THREADS = 8
_SILENCE = 0.05  # seconds without a frame, after which a session is over
_PADDED, _PRIORITY = 0x8, 0x20  # flags
# What gRPC's own libraries say with INTERNAL or UNKNOWN of calls that break its rules, and so does the server.
_BROKEN_CALLS = (
    *(
        "compressed flag",
        "message is compressed",
        "message is not",
        "call ends before",
        "stream ends inside",
        "call has several messages",
    ),
    *(
        "grpc-timeout is",
        "Received http2 header",
        "RST_STREAM",
        "Invalid",
        "Illegal",
        "Error",
        "Failed",
        "Bad",
        "internal",
    ),
    *(
        "Failed parsing HTTP/2",
        "Compression bit set",
        "Decompression failed",
        "Socket closed",
        "CANCELLED",
        "Cancelled",
        "Too many pings",
        "Metadata keys",
        "Duplicate",
    ),
)
_CODES = {"0", "3", "4", "5", "7", "8", "9", "12"}
_HTTP = {"200", "400", "405", "413", "414", "415", "431"}
_TIMEOUTS = ("1S", "20S", "99999999H", "0n", "-1S", "", "1.5S", "9" * 20, "1\x00S", "S")
_ENCODINGS = ("identity", "gzip", "deflate", "br", "snappy", "", "x" * 300)
_TYPES = ("application/grpc", "application/grpc+proto", "application/json", "text/html", "", "application/grpcx")
_PATHS = ("/", "", "*", "/convoy.v1.Vision/", "/convoy.v1.Vision/Nothing", "/../../etc/passwd", "/%2e%2e/x", "x" * 9000)


class Session(NamedTuple):
    """What is sent: the whole, and where it is cut into pieces."""

    data: bytes
    cuts: tuple[int, ...]


def session(rng: random.Random) -> Session:
    """The bytes of one connection."""
    encoder = hpack.Encoder()
    out = bytearray(MAGIC + frame(SETTINGS, payload=_settings(rng) if rng.random() < 0.3 else b""))
    stream = 1
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.5:
            out += _call(rng, encoder, stream)
            stream += 2
        else:
            out += rng.choice(_PIECES)(rng, encoder, max(0, stream - 2))
    data = bytes(out)
    chance = rng.random()
    if chance < 0.15:
        data = data[:40] + mutation.scrambled(rng, data[40:])
    elif chance < 0.2:
        data = mutation.scrambled(rng, data)
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    return Session(data, tuple(cuts))


def _call(rng: random.Random, encoder: hpack.Encoder, stream: int) -> bytes:
    """A call: right, or wrong in one way or another."""
    method = rng.choice(METHODS)
    body = rng.choice(requests(method.name))
    if rng.random() < 0.3:
        body = mutation.message(rng, body)[:20_000]
    pairs = wire.request(method.path)
    if rng.random() < 0.4:
        pairs = _odd(rng, pairs)
    block = encoder.encode(pairs)
    if rng.random() < 0.1:
        block = rng.choice(
            (rng.randbytes(30), block + b"\x3f\xe1\xff\xff\xff\x0f", block + b"\xbe" * 3000, b"\xff" * 9, block[:-1])
        )
    framed = message(body, rng.choice((0, 0, 0, 0, 1, 2, 255)))
    if rng.random() < 0.1:
        framed = message(gzip.compress(bytes(1 << 20)), 1)
    if rng.random() < 0.1:
        framed = framed[:1] + struct.pack(">I", rng.choice(EDGES) & 0xFFFF_FFFF) + framed[5:]
    last = END_STREAM if rng.random() < 0.9 else 0
    head = _head_frames(rng, block, stream)
    if rng.random() < 0.2:  # in pieces, the last of which may be missing
        size = rng.choice((1, 7, 100))
        pieces = [framed[at : at + size] for at in range(0, min(len(framed), 300 * size), size)]
        return head + b"".join(frame(DATA, 0, stream, each) for each in pieces) + frame(DATA, last, stream)
    if rng.random() < 0.1:  # trailers, which no call has
        return (
            head
            + frame(DATA, 0, stream, framed)
            + frame(HEADERS, END_HEADERS | last, stream, encoder.encode([("x", "y")]))
        )
    return head + _padded(rng, DATA, last, stream, framed[:16_384])


def _odd(rng: random.Random, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    pairs = list(pairs)
    match rng.randrange(10):
        case 0:
            return [*pairs, ("grpc-timeout", rng.choice(_TIMEOUTS))]
        case 1:
            return [*pairs, (rng.choice(("grpc-encoding", "grpc-accept-encoding")), rng.choice(_ENCODINGS))]
        case 2:
            return [(name, rng.choice(_TYPES) if name == "content-type" else value) for name, value in pairs]
        case 3:
            return [(name, rng.choice(_PATHS) if name == ":path" else value) for name, value in pairs]
        case 4:
            return [
                (name, rng.choice(("GET", "PUT", "", "POST\n")) if name == ":method" else value)
                for name, value in pairs
            ]
        case 5:
            return [pair for pair in pairs if pair[0] != rng.choice(pairs)[0]]
        case 6:
            return [*pairs, rng.choice(pairs)]
        case 7:
            return [
                *pairs,
                (
                    rng.choice(("X", "a b", "", ":x", "connection", "te", "x-bin")),
                    rng.choice(("a\nb", "\0", "=", "gzip")),
                ),
            ]
        case 8:
            return [
                *pairs,
                *((f"x{number}", "y" * rng.choice((1, 1000, 9000))) for number in range(rng.choice((1, 20)))),
            ]
        case _:
            return [
                *pairs,
                ("traceparent", "00-" + "a" * rng.randrange(40)),
                ("x-request-id", "\x1b[2J{}"),
                ("authorization", "Bearer x"),
            ]


def _head_frames(rng: random.Random, block: bytes, stream: int) -> bytes:
    if rng.random() < 0.2:
        at = rng.randrange(len(block) + 1)
        flags = END_HEADERS if rng.random() < 0.9 else 0
        return frame(HEADERS, 0, stream, block[:at]) + frame(CONTINUATION, flags, stream, block[at:])
    if rng.random() < 0.1:
        block = struct.pack(">IB", rng.choice((0, stream, 2**31)), 7) + block
        return frame(HEADERS, END_HEADERS | _PRIORITY, stream, block)
    return _padded(rng, HEADERS, END_HEADERS, stream, block)


def _padded(rng: random.Random, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    if rng.random() < 0.9:
        return frame(kind, flags, stream, payload)
    length = rng.choice((0, 1, 255))  # which may be longer than the frame
    return frame(kind, flags | _PADDED, stream, bytes([length]) + payload + bytes(rng.choice((0, length))))


def _settings(rng: random.Random) -> bytes:
    pairs = ((rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 9, 65_535)), rng.choice(EDGES) & 0xFFFF_FFFF) for _ in range(3))
    return b"".join(struct.pack(">HI", *pair) for pair in pairs)


def _lie(rng: random.Random, encoder: hpack.Encoder, stream: int) -> bytes:
    whole = frame(rng.randrange(11), rng.getrandbits(8), stream, rng.randbytes(rng.choice((0, 4, 8, 30))))
    return struct.pack(">I", rng.choice(EDGES) & 0xFF_FFFF)[1:] + whole[3:]


Piece = Callable[[random.Random, hpack.Encoder, int], bytes]
_PIECES: tuple[Piece, ...] = (
    lambda rng, _, stream: frame(
        SETTINGS, rng.choice((0, ACK)), rng.choice((0, stream)), _settings(rng)[: rng.choice((0, 5, 18))]
    ),
    lambda rng, _, stream: frame(
        PRIORITY, 0, stream, struct.pack(">IB", rng.choice((0, stream, 99)), 3)[: rng.choice((4, 5))]
    ),
    lambda rng, _, stream: frame(
        WINDOW_UPDATE, 0, rng.choice((0, stream)), struct.pack(">I", rng.choice((0, 1, 2**31 - 1)))
    ),
    lambda rng, _, stream: frame(
        RST_STREAM, 0, rng.choice((0, stream, stream + 8)), struct.pack(">I", rng.choice((0, 8, 999)))
    ),
    lambda rng, _, stream: frame(GOAWAY, 0, rng.choice((0, 0, stream)), bytes(8) + b'x\n{"level":"error"}\n\x1b[2J'),
    lambda rng, encoder, stream: frame(PUSH_PROMISE, END_HEADERS, stream, bytes(4) + encoder.encode([("x", "y")])),
    lambda rng, _, stream: frame(CONTINUATION, rng.choice((0, END_HEADERS)), stream, rng.randbytes(5)),
    lambda rng, _, stream: frame(
        DATA, rng.choice((0, END_STREAM)), rng.choice((0, stream, stream + 20)), rng.randbytes(9)
    ),
    lambda rng, _, stream: frame(PING, rng.choice((0, ACK)), 0, bytes(rng.choice((8, 8, 7)))) * rng.choice((1, 3)),
    lambda rng, _, stream: frame(rng.choice((10, 16, 99, 255)), rng.getrandbits(8), stream, rng.randbytes(12)),
    lambda rng, encoder, stream: frame(
        HEADERS, END_HEADERS | END_STREAM, rng.choice((0, 2, stream)), encoder.encode(wire.request())
    ),
    lambda rng, encoder, stream: (
        frame(HEADERS, 0, stream + 2, encoder.encode(wire.request())) + frame(CONTINUATION, 0, stream + 2) * 50
    ),
    _lie,
)


def run(trials: int, seed: int) -> Tally:
    """One trial is one session."""
    count = Count()
    # grpcio's server ends at a path that is not UTF-8, and is replaced.
    retry = transport(seed) == "grpcio"
    with Siege(count, seed, retry=retry) as siege, ThreadPoolExecutor(_THREADS) as threads:
        for wrong in threads.map(lambda number: attempt(siege, f"{seed} {number}"), range(trials)):
            count.bad(wrong) if wrong else count.good()
    return count.tally()


def attempt(siege: Siege, seed: str) -> str:
    """What is wrong with how a session went; "" if nothing is."""
    rng = random.Random(f"session {seed}")
    sent = session(rng)
    # Each from elsewhere: the server lets those wait who have misused a connection before.
    source = f"127.{rng.randrange(1, 250)}.{rng.randrange(250)}.{rng.randrange(1, 250)}"
    try:
        with Raw(siege.address, greet=False, source=source) as caller:
            return _spoken(caller, sent, seed)
    except ConnectionError:
        return ""  # the server may end what it does not like


def _spoken(caller: Raw, sent: Session, seed: str) -> str:
    caller.socket.settimeout(_SILENCE)
    found: list[wire.Frame] = []
    began = time.monotonic()
    with suppress(OSError):
        at = 0
        for end in (*sent.cuts, len(sent.data)):
            caller.socket.sendall(sent.data[at:end])
            at = end
    ended = _read(caller, found, _SILENCE)
    if not ended:
        with suppress(OSError):
            caller.socket.shutdown(socket.SHUT_WR)
        if not _read(caller, found, SECONDS):
            return f"session {seed!r}: the connection is still open after {time.monotonic() - began:.0f} s"
    return next(
        (f"session {seed!r}: {wrong}" for wrong in _faults(found, text_of(sent.data) + "".join(_PATHS)) if wrong), ""
    )


def _read(caller: Raw, found: list[wire.Frame], silence: float) -> bool:
    """Reads until the end of the connection, or until nothing comes; returns whether it was the end."""
    caller.socket.settimeout(silence)
    until = time.monotonic() + SECONDS
    try:
        while (each := caller.read()) is not None and time.monotonic() < until:
            found.append(each)
    except TimeoutError:
        return False
    return each is None


def _faults(found: list[wire.Frame], sent: str) -> list[str]:
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    faults = []
    for each in found:
        if each.kind == HEADERS:
            payload = each.payload[5:] if each.flags & _PRIORITY else each.payload
            faults.append(_fault_in(_decoded(decoder, payload), sent))
        elif each.kind == GOAWAY:
            faults.append(leaks.found(each.payload[8:].decode(errors="replace"), sent))
    return faults


def _decoded(decoder: hpack.Decoder, payload: bytes) -> dict[str, str]:
    # A library may repeat a header that is not UTF-8.
    pairs = decoder.decode(payload, raw=True)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in pairs}


def _fault_in(headers: dict[str, str], sent: str) -> str:
    said = headers.get("grpc-message", "")
    if headers.get(":status", "200") not in _HTTP:
        return f"HTTP status {headers[':status']}"
    code = headers.get("grpc-status", "0")
    if code not in _CODES and not (code in ("1", "2", "13", "14") and said.startswith(_BROKEN_CALLS)):
        return f"status {code}: {said!r}"
    return leaks.found(said, sent)


def control(seed: int) -> Tally:
    """A process that dies."""
    return with_a_death("frontend", seed)


PROBE = Probe(
    "R1",
    "No session of HTTP/2 ends or hangs the server, or hurts a good caller",
    "hostile HTTP/2 sessions",
    10_000,
    1_000,
    run,
    control,
)
