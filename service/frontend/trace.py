"""The names of a call: `x-request-id`, which is sent back, and W3C's `traceparent`; and its span if it is sampled."""

import random
import re
from typing import NamedTuple

from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.spans import SPANS, Span
from convoy.service.frontend.tracing import TRACES

REQUEST_ID, PARENT, STATE, RESPONSE = "x-request-id", "traceparent", "tracestate", "traceresponse"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PARTS = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"  # zeros identify nothing
_LATER = rf"(?!00|ff)[0-9a-f]{{2}}{_PARTS}(-[\x21-\x7e]{{0,200}})?"  # a version after 00 may have more parts
_PARENT = re.compile(rf"00{_PARTS}|{_LATER}")
_STATE = re.compile(r"[\x20-\x7e\t]{1,512}")

Header = bytes | str | None


class Trace(NamedTuple):
    """The names of a call; "": it has none. The span is there if it is sampled."""

    request_id: str
    parent: str
    state: str = ""
    span: Span | None = None

    def fields(self) -> dict[str, str]:
        """Returns the fields of a log record."""
        found = {name: value for name, value in (("request_id", self.request_id), (PARENT, self.parent)) if value}
        if self.span is not None:
            found |= {"trace_id": f"{self.span.trace_id:032x}", "span_id": f"{self.span.span_id:016x}"}
        return found

    def headers(self) -> list[tuple[str, str]]:
        """Returns what goes back to the caller."""
        found = [(REQUEST_ID, self.request_id)] if self.request_id else []
        return found if self.span is None else [*found, (RESPONSE, self.span.header)]

    def unsampled(self) -> "Trace":
        """Returns the names without the span: of a stream, each of whose requests has its own, or none."""
        return self if self.span is None else self._replace(span=None)

    def of_call(self) -> "Trace":
        """Returns the names of a call that a request over HTTP makes."""
        return self if self.span is None else self._replace(span=self.span.child())


def read(request_id: Header, parent: Header, state: Header = None) -> Trace | None:
    """Returns the names in the headers of a call; None if it has none, or none that the log should have.

    Decides whether the call is sampled. Where it may be found later, in the log or in a trace, it gets a name.
    """
    found = Trace(_matching(_REQUEST_ID, request_id), _matching(_PARENT, parent))
    if found.parent and state is not None:
        found = found._replace(state=_matching(_STATE, state))
    if SPANS.on and (span := SPANS.begin(found.parent, found.state)) is not None:
        found = found._replace(span=span)
    if not found.request_id and (found.span is not None or REQUESTS.failed or TRACES.on):
        found = found._replace(request_id=_new(found.span))
    return found if any(found) else None


def names_all() -> bool:
    """Returns whether calls that bring no name may have one."""
    return SPANS.on or REQUESTS.failed or TRACES.on


def of_request(trace: Trace | None) -> Trace | None:
    """Returns the names of one request of a stream, whose names are `trace`. Decides whether it is sampled."""
    if not SPANS.on:
        return trace
    stream = trace or Trace("", "")
    span = SPANS.begin(stream.parent, stream.state)
    return trace if span is None else stream._replace(request_id=stream.request_id or _new(span), span=span)


def _new(span: Span | None) -> str:
    return f"{random.getrandbits(64):016x}" if span is None else f"{span.trace_id:032x}"


def _matching(pattern: re.Pattern[str], value: Header) -> str:
    if value is None:
        return ""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text if pattern.fullmatch(text) else ""
