"""Calls that end before a method has their request: refused by a transport or at the doors. Their lines and spans."""

from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.spans import SPANS
from convoy.service.frontend.trace import Trace

_SHOWN = 100  # bytes of a path


def refused(trace: Trace | None, path: bytes, known: bool, peer: str, code: str, reason: str, detail: str) -> None:
    """Records a call that a transport has refused: in the log where that is on, and in its trace.

    known  whether a method has this path
    """
    if REQUESTS.failed:
        fields: dict[str, object] = {
            "path": shown(path),
            "reason": reason,
            "detail": detail,
            "peer": peer,
        }
        REQUESTS.refused_at_door(fields if trace is None else fields | trace.fields())
    turned_away(trace, path, known, peer, code, reason, detail)


def turned_away(trace: Trace | None, path: bytes, known: bool, peer: str, code: str, reason: str, detail: str) -> None:
    """Records the same in its trace alone: the doors have their own line."""
    if trace is not None and trace.span is not None:
        SPANS.end_refused(trace.span, shown(path) if known else "", peer, code, reason, detail)


def shown(path: bytes) -> str:
    """Returns a path as a line may have it: a caller may have made it up."""
    return path[:_SHOWN].decode("ascii", "backslashreplace")
