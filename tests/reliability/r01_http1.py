"""R1: requests of HTTP/1 to the two HTTP ports: right, wrong, and such that two readers disagree about them."""

import itertools
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tests.reliability import leaks, mutation
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.siege import SECONDS, Siege, host_and_port, text_of, with_a_death
from tests.service.frontend.transport.raw import MAGIC

_THREADS = 8
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_STATUSES = {200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 426, 429, 431, 501, 503, 505}
_METHODS = (
    b"GET",
    b"GET",
    b"GET",
    b"HEAD",
    b"OPTIONS",
    b"POST",
    b"PUT",
    b"CONNECT",
    b"TRACE",
    b"get",
    b"G\0T",
    b"X" * 300,
    b"",
)
_TARGETS = (
    *(b"/livez", b"/readyz", b"/metrics", b"/", b"*", b"", b"//livez", b"/livez?x=%00", b"/%2e%2e/%2e%2e/etc/passwd"),
    *(
        b"http://other/livez",
        b"HTTP://[::1",
        b"/../../etc/passwd",
        b"/\0",
        b"/\xff\xfe",
        b"/livez#f",
        b"/a b",
        b"/v2/models/..%2f..%2fx",
    ),
    *(
        b"/" + b"x" * 9000,
        b"/" + b"x" * 100_000,
        b"/v2/health/live",
        b"/v2/models/letters",
        b"/livez\x1b[2J",
        b"/;{}|`$(id)",
    ),
)
_VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.9999999999",
    b"HTTX/1.1",
    b"",
)
_HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
# Heads about whose bodies two readers disagree: nothing that follows them on the connection may be read as a request.
_AMBIGUOUS = (
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: 5, 6\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length : 5\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
    b"X: y\r\n Content-Length: 5\r\n",  # a folded line
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: -1\r\n",
)
_HEADS = (
    *(
        b"Host: x\r\n",
        b"Host: x\r\nHost: y\r\n",
        b"",
        b"Host: x\r\nConnection: close\r\n",
        b"Host: x\r\nConnection: keep-alive\r\n",
    ),
    *(
        b"Host: x\r\nExpect: 100-continue\r\n",
        b"Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AAAA\r\n",
    ),
    *(
        b"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n",
        b"X: " + b"y" * 70_000 + b"\r\n",
    ),
    *(
        b"Host: x\r\n" + b"X: y\r\n" * 300,
        b"\0: x\r\n",
        b": x\r\n",
        b"no colon\r\n",
        b"Host: x\n",
        b"Accept-Encoding: gzip\r\n",
    ),
    *(
        b"Authorization: Bearer " + b"x" * 5000 + b"\r\n",
        b"Host: \xff\r\n",
        b"traceparent: x\r\nx-request-id: \x1b[2J\r\n",
    ),
)
_BODIES = (
    b"",
    b"x" * 5,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\nx",
    b'5;x="\r\nhello\r\n0\r\nX: y\r\n\r\n',
    b"-5\r\n",
    b"{}" * 5000,
)
_FRAMED = (b"Content-Length: %d\r\n", b"Transfer-Encoding: chunked\r\n", b"")


def conversation(rng: random.Random) -> tuple[list[bytes], bool]:
    """The pieces of what is sent on one connection, and whether a request is hidden in it."""
    if rng.random() < 0.25:
        head = rng.choice((b"GET", b"POST")) + b" /livez HTTP/1.1\r\nHost: x\r\n" + rng.choice(_AMBIGUOUS)
        return [head + b"\r\n" + rng.choice((b"", b"0\r\n\r\n", b"hello")) + _HIDDEN], True
    if rng.random() < 0.05:
        return [MAGIC + bytes(9)], False
    whole = b"".join(_request(rng) for _ in range(rng.choice((1, 1, 1, 2, 5))))
    if rng.random() < 0.2:
        whole = mutation.scrambled(rng, whole)
    cuts = sorted({0, len(whole), *(rng.randrange(len(whole) + 1) for _ in range(rng.choice((0, 0, 2))))})
    return [whole[begin:end] for begin, end in itertools.pairwise(cuts)], False


def _request(rng: random.Random) -> bytes:
    line = b" ".join((rng.choice(_METHODS), rng.choice(_TARGETS), rng.choice(_VERSIONS)))
    body, framed = rng.choice(_BODIES), rng.choice(_FRAMED)
    if b"%d" in framed:
        framed %= rng.choice((len(body), len(body), max(0, len(body) - 1), len(body) + 5, 1 << 30))
    return line + rng.choice((b"\r\n", b"\r\n", b"\n", b"\r")) + rng.choice(_HEADS) + framed + b"\r\n" + body


def run(trials: int, seed: int) -> Tally:
    """One trial is one conversation."""
    count = Count()
    with Siege(count, seed) as siege, ThreadPoolExecutor(_THREADS) as threads:
        for wrong in threads.map(lambda number: attempt(siege, f"{seed} {number}"), range(trials)):
            count.bad(wrong) if wrong else count.good()
        for url, page in (
            (siege.server.http, "/livez"),
            (siege.server.http, "/readyz"),
            (siege.server.metrics, "/metrics"),
        ):
            if (status := siege.server.get(url + page)[0]) != 200:
                count.also_bad(f"seed {seed}: {page} has status {status} at the end")
    return count.tally()


def attempt(siege: Siege, seed: str) -> str:
    """What is wrong with how a conversation went; "" if nothing is."""
    rng = random.Random(f"conversation {seed}")
    address = host_and_port(rng.choice((siege.server.http, siege.server.metrics)))
    pieces, hidden = conversation(rng)
    received, began = b"", time.monotonic()
    try:
        with socket.create_connection(address, SECONDS) as caller:
            with suppress(OSError):
                for piece in pieces:
                    caller.sendall(piece)
                caller.shutdown(socket.SHUT_WR)
            while more := caller.recv(1 << 16):
                received += more
    except TimeoutError:
        return f"conversation {seed!r}: still open after {time.monotonic() - began:.0f} s"
    except ConnectionError:
        pass  # reset, because the server does not read what it refuses
    wrong = _fault_in(received, text_of(b"".join(pieces)))
    if not wrong and hidden and len(_STATUS.findall(received)) > 1:
        wrong = f"a hidden request was answered: {received[-100:]!r}"
    return f"conversation {seed!r} {pieces[0][:80]!r}: {wrong}" if wrong else ""


def _fault_in(received: bytes, sent: str) -> str:
    for match in _STATUS.finditer(received):
        if int(match[1]) not in _STATUSES and int(match[1]) != 100:
            return f"status {match[1].decode()}"
    if b"convoy_" in received or received.startswith(b"\x1f\x8b"):
        return ""  # the metrics, which are no errors
    return leaks.found(received.decode(errors="replace"), sent + "/livez /readyz /metrics")


def control(seed: int) -> Tally:
    """A process that dies."""
    return with_a_death("frontend", seed)


PROBE = Probe(
    "R1",
    "No request of HTTP/1 ends or hangs the server, is taken for two, or hurts a good caller",
    "hostile HTTP/1 conversations",
    10_000,
    1_000,
    run,
    control,
)
