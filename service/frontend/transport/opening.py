"""Opens the call that the headers of a request ask for, or refuses it."""

import math
import time
from typing import TYPE_CHECKING

from convoy.service.frontend.status import Code
from convoy.service.frontend.trace import Trace, names_all, read
from convoy.service.frontend.transport.exchange import Exchange, UnaryExchange
from convoy.service.frontend.transport.messages import ENCODINGS, Assembler, Refused, accepted, seconds
from convoy.service.frontend.transport.nghttp2 import Headers, headers
from convoy.service.frontend.transport.stream_exchange import StreamExchange

if TYPE_CHECKING:
    from convoy.service.frontend.transport.connection import Connection

_CONTENT = b"application/grpc"
_MOST_UNSENT = 64 << 20  # bytes of answers on one connection, beyond which it accepts no call
_LONGEST_TIMER = 86_400 * 365  # seconds; a longer deadline needs no timer
_SHOWN = 100  # bytes of a value that is repeated in a message
_OTHER_CONTENT = headers((b":status", b"415"), constant=True)
_OTHER_METHOD = headers((b":status", b"405"), (b"allow", b"POST"), constant=True)


class NotGrpc(Exception):
    """A request that is not gRPC, with the headers of its answer."""

    def __init__(self, answer: Headers) -> None:
        super().__init__()
        self.answer = answer


def opened(connection: "Connection", number: int, trace: Trace | None) -> Exchange:
    """Returns the call on the stream with this number, whose headers have just arrived. `trace`: see trace_of.

    Raises Refused, NotGrpc, and what the doors raise.
    """
    block, hub = connection.block, connection.hub
    _check(block)
    size, limits = connection.block_bytes, hub.limits
    if size > limits.metadata_bytes:
        raise Refused(Code.RESOURCE_EXHAUSTED, f"metadata has {size} bytes, want at most {limits.metadata_bytes}")
    caller = None
    if hub.doors is not None:
        authorization = block.get(b"authorization")
        caller = hub.doors.admit(block[b":path"], authorization, connection.names, connection.source.caller, trace)
    method = hub.methods.get(block[b":path"])
    if method is None:
        raise Refused(Code.UNIMPLEMENTED, f"method {_shown(block[b':path'])} is unknown")
    encoding = block.get(b"grpc-encoding", b"identity")
    if encoding not in ENCODINGS:
        raise Refused(Code.UNIMPLEMENTED, f"grpc-encoding is {_shown(encoding)}, want identity, deflate or gzip")
    timeout = seconds(block[b"grpc-timeout"]) if b"grpc-timeout" in block else math.inf
    room = method.room
    if room.full:
        hub.free_place(room)
    # When places become scarce, a connection gets no more than its share: another caller finds one.
    if room.full or (room.scarce and len(connection.exchanges) * len(hub.connections) > room.most):
        raise Refused(Code.RESOURCE_EXHAUSTED, room.refusal)
    if connection.unsent > _MOST_UNSENT:
        raise Refused(
            Code.RESOURCE_EXHAUSTED,
            f"{connection.unsent} bytes of answers wait, want at most {_MOST_UNSENT}",
        )
    deadline = time.monotonic() + timeout if timeout < _LONGEST_TIMER else math.inf
    assembler = Assembler(limits.message_bytes, encoding, method.land)
    if limits.compression != "none":
        answers = accepted(block.get(b"grpc-accept-encoding", b""), limits.compression)
    else:
        answers = b"identity"
    room.calls += 1
    exchange: Exchange
    if method.unary is not None:
        exchange = UnaryExchange(connection, number, assembler, deadline, answers, method)
    else:
        assert method.streaming is not None
        exchange = StreamExchange(connection, number, assembler, deadline, answers, room, method.streaming)
        trace = trace and trace.unsampled()
    exchange.caller, exchange.trace = caller, trace
    if deadline < math.inf:
        exchange.expire_in(timeout)
    return exchange


def trace_of(block: dict[bytes, bytes]) -> Trace | None:
    """Returns how the caller names its call, and whether it is sampled. To be called once for a call."""
    request_id, parent = block.get(b"x-request-id"), block.get(b"traceparent")
    if request_id is parent is None and not names_all():
        return None
    return read(request_id, parent, block.get(b"tracestate"))


def _check(block: dict[bytes, bytes]) -> None:
    content = block.get(b"content-type", b"")
    if not content.startswith(_CONTENT) or content[len(_CONTENT) : len(_CONTENT) + 1] not in (b"", b"+", b";"):
        raise NotGrpc(_OTHER_CONTENT)
    if block.get(b":method") != b"POST":
        raise NotGrpc(_OTHER_METHOD)


def _shown(value: bytes) -> str:
    return repr(value[:_SHOWN].decode("ascii", "backslashreplace"))
