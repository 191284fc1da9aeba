"""Spans: what a request of a sampled trace did, and when. Recorded only where `tracing.enabled` is set.

A call is sampled, or not, when its headers are read: as its caller says in `traceparent`, else by chance. For a call
that is not, nothing is made. What is recorded stays plain data until the request has ended: see exporting.py.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from convoy.service import metrics
from convoy.service.errors import ConvoyError

if TYPE_CHECKING:
    from convoy.service.access import Caller
    from convoy.service.frontend.threads import Who

Kind = Literal["server", "internal"]
Value = str | int | float

_MOST_CHUNKS = 32  # of a request whose stages are recorded: each has as many spans as there are stages
_MOST_REFUSALS = 32  # of a request's images
_SAMPLED = 0x01  # of the flags in traceparent
_NO_ERRORS = ("OK", "CANCELLED")  # a caller may leave


class Stages(NamedTuple):
    """Images that were answered together.

    seconds  of each stage, in the order of metrics.STAGES, from the arrival on
    device   "": not known
    """

    seconds: Sequence[float]
    images: int
    batch_size: int
    device: str


class Refusal(NamedTuple):
    """Why a request, or one of its images, was not served, and when."""

    time: float
    reason: str
    message: str


class Span:
    """A request of a sampled trace, until it ends. One writer: the front end's loop."""

    __slots__ = ("chunks", "kind", "parent", "refusals", "span_id", "stages", "state", "trace_id")

    def __init__(self, trace_id: int, parent: int, state: str, kind: Kind) -> None:
        self.trace_id = trace_id
        self.span_id = random.getrandbits(64) or 1
        self.parent = parent  # the span of the caller; 0: none, this is the first of its trace
        self.state = state  # the header `tracestate`
        self.kind = kind
        self.stages: list[Stages] = []
        self.refusals: list[Refusal] = []
        self.chunks = 0  # that were answered, also beyond those in `stages`

    @property
    def header(self) -> str:
        """The span in the form of `traceparent`."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def child(self) -> "Span":
        """Returns a span within this one, for a call that a request over HTTP makes."""
        return Span(self.trace_id, self.span_id, self.state, "internal")

    def answered(self, seconds: Sequence[float], images: int, batch_size: int, device: int | None = None) -> None:
        """Records images that were answered together; `seconds` as in `Stages`, and in total."""
        self.chunks += 1
        if len(self.stages) < _MOST_CHUNKS:
            self.stages.append(Stages(seconds[:-1], images, batch_size, "" if device is None else str(device)))

    def refused(self, reason: str, message: str) -> None:
        """Records that the request, or one of its images, was not served."""
        if len(self.refusals) < _MOST_REFUSALS:
            self.refusals.append(Refusal(time.monotonic(), reason, message))


class Ended(NamedTuple):
    """A request that has ended.

    attributes  of the span
    error       its reason and message; None: all went well
    """

    span: Span
    name: str
    began: float  # seconds of CLOCK_MONOTONIC
    ended: float
    attributes: Mapping[str, Value]
    error: tuple[str, str] | None


class Spanned(Protocol):
    """What a span says of a request: see Call."""

    method: str
    model: str
    version: str
    arrived: float
    caller: "Caller | None"
    span: Span | None

    @property
    def peer(self) -> str: ...

    @property
    def provider(self) -> str: ...

    @property
    def request_id(self) -> str: ...


class Asked(Protocol):
    """What a span says of a request over HTTP: see rest/asked.py."""

    path: str
    scheme: str
    source: "Who"
    began: float


class Spans:
    """Which calls of this process are sampled, and where their spans go. One writer: the front end's loop."""

    def __init__(
        self, chance: Callable[[], float] = random.random, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.on = False
        self._chance = chance
        self._clock = clock
        self._share = 0.0
        self._most = 0  # a second
        self._second = 0.0  # when the current one began
        self._begun = 0  # in it
        self._send: Callable[[Ended], None] = lambda ended: None
        self._paths: Mapping[str, str] = {}

    def set(self, share: float, send: Callable[[Ended], None], paths: Mapping[str, str], most: int = 0) -> None:
        """Begins to record.

        share  of the traces that begin here
        most   requests that are recorded in a second: any caller may ask for it; 0: all
        send   accepts each request that has ended; it must not wait
        paths  the full names of methods, such as convoy.v1.Vision/Classify, by their names
        """
        self.on = True
        self._share, self._send, self._paths, self._most = share, send, paths, most

    def begin(self, parent: str, state: str = "") -> Span | None:
        """Returns the span of a call that is sampled. `parent`: its `traceparent`, which is valid; "": it has none."""
        if parent:
            if not int(parent[53:55], 16) & _SAMPLED or not self._has_room():
                return None
            return Span(int(parent[3:35], 16), int(parent[36:52], 16), state, "server")
        if self._chance() >= self._share or not self._has_room():
            return None
        return Span(random.getrandbits(128) or 1, 0, "", "server")

    def _has_room(self) -> bool:
        now = self._clock()
        if now >= self._second + 1:
            self._second, self._begun = now, 0
        self._begun += 1
        return not self._most or self._begun <= self._most

    def end(self, call: Spanned, code: str) -> None:
        """Ends the span of a request, which is sampled, with its status."""
        span = call.span
        assert span is not None
        name = self._paths.get(call.method, call.method)
        attributes = _of_rpc(name, code, call.peer)
        more: dict[str, Value] = {"convoy.model": call.model, "convoy.version": call.version}
        more |= {"convoy.provider": call.provider, "convoy.request_id": call.request_id}
        if call.caller is not None and not call.caller.public:
            more["convoy.caller"] = call.caller.name
        if span.stages:
            more["convoy.images"] = sum(each.images for each in span.stages)
            more["convoy.batch_size"] = max(each.batch_size for each in span.stages)
            more["convoy.device"] = span.stages[0].device
        if span.chunks > 1:
            more["convoy.chunks"] = span.chunks
        attributes |= {key: value for key, value in more.items() if value != ""}
        self._finish(span, name, call.arrived, attributes, _error(span, code))

    def end_refused(self, span: Span, path: str, peer: str, code: str, reason: str, message: str) -> None:
        """Ends the span of a call that was refused before its request was read. `path`: "" if it is unknown."""
        name = path.strip("/") or "_OTHER"  # as the conventions want it: a caller may have made the name up
        self._finish(span, name, time.monotonic(), _of_rpc(name, code, peer), (reason, message))

    def end_http(
        self, span: Span, method: str, route: str, asked: Asked, status: int, refused: ConvoyError | None
    ) -> None:
        """Ends the span of a request over HTTP. `route`: the pattern of its path; "": none is known."""
        attributes: dict[str, Value] = {
            "http.request.method": method,
            "http.response.status_code": status,
            "url.scheme": asked.scheme,
            "url.path": asked.path,
            "client.address": asked.source.caller,
        }
        if route:
            attributes["http.route"] = route
        error = None if refused is None else (refused.reason, refused.message)
        self._finish(span, f"{method} {route}".strip(), asked.began, attributes, error)

    def _finish(
        self, span: Span, name: str, began: float, attributes: dict[str, Value], error: tuple[str, str] | None
    ) -> None:
        if error is not None:
            attributes["error.type"] = error[0]
        self._send(Ended(span, name, began, time.monotonic(), attributes, error))


def stages(ended: Ended) -> list[tuple[str, float, float, dict[str, Value]]]:
    """Returns the stages of a request as (name, begin, end, attributes), in order."""
    found = []
    for number, each in enumerate(ended.span.stages):
        attributes: dict[str, Value] = {"convoy.images": each.images, "convoy.batch_size": each.batch_size}
        if ended.span.chunks > 1:
            attributes["convoy.chunk"] = number
        begin = ended.began
        for name, seconds in zip(metrics.STAGES, each.seconds, strict=True):
            found.append((name, begin, begin + seconds, attributes))
            begin += seconds
    return found


def _of_rpc(name: str, code: str, peer: str) -> dict[str, Value]:
    return {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "rpc.response.status_code": code,
        "client.address": peer,
    }


def _error(span: Span, code: str) -> tuple[str, str] | None:
    if code in _NO_ERRORS:
        return None
    # A caller that leaves at its deadline is refused by nobody.
    return (span.refusals[-1].reason, span.refusals[-1].message) if span.refusals else (code, "the caller has left")


SPANS = Spans()  # of this process, as its metrics are
