"""The headers of answers: what begins one, and what ends one."""

from collections.abc import Iterable

from convoy.service.frontend.status import Code
from convoy.service.frontend.trace import Trace
from convoy.service.frontend.transport.messages import status_headers
from convoy.service.frontend.transport.nghttp2 import Headers, headers

_BEGINNING = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
]
_RESPONSES = {
    b"identity": headers(*_BEGINNING, constant=True),
    **{
        encoding: headers(*_BEGINNING, (b"grpc-encoding", encoding), constant=True)
        for encoding in (b"gzip", b"deflate")
    },
}
OK = headers((b"grpc-status", b"0"), constant=True)
OK_ALONE = headers(*_BEGINNING, (b"grpc-status", b"0"), constant=True)


def trailers_only(
    code: Code, message: str, pairs: Iterable[tuple[str, str | bytes]] = (), trace: Trace | None = None
) -> Headers:
    """Returns the headers of an answer without a message."""
    return headers(*_beginning(trace), *status_headers(code, message, pairs))


def _beginning(trace: Trace | None) -> list[tuple[bytes, bytes]]:
    """Returns the first headers of an answer: the caller gets its name of the call back."""
    if trace is None:
        return _BEGINNING
    return [*_BEGINNING, *((name.encode(), value.encode()) for name, value in trace.headers())]


def first_headers(trace: Trace | None, encoding: bytes) -> Headers:
    """Returns the headers of an answer whose messages follow, compressed as `encoding` says."""
    if trace is None:
        return _RESPONSES[encoding]
    more = [] if encoding == b"identity" else [(b"grpc-encoding", encoding)]
    return headers(*_beginning(trace), *more)
