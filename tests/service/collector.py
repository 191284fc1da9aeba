"""A collector that speaks OTLP over gRPC, on loopback: what servers send their spans to in tests."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

OK, ERROR = 0, 2  # of a span's status; 0: unset
INTERNAL, SERVER = 1, 2  # kinds


class Span(NamedTuple):
    """A span as it arrived. Identifiers in hexadecimal; times in nanoseconds since 1970."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent: str
    state: str
    began: int
    ended: int
    status: int
    message: str
    attributes: dict[str, Any]
    events: list[dict[str, Any]]
    resource: dict[str, Any]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that arrive. `port`: 0 takes any free one."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = [
            _span(each, _values(group.resource.attributes))
            for group in request.resource_spans
            for scope in group.scope_spans
            for each in scope.spans
        ]
        with self._changed:
            self.headers.append(dict(context.invocation_metadata()))
            self.spans += found
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, wanted: Callable[[Span], bool], seconds: float = 30.0) -> Span:
        """The first span of this kind."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for span in self.spans:
                    if wanted(span):
                        return span
                left = deadline - time.monotonic()
                assert left > 0, f"no such span among {[span.name for span in self.spans]}"
                self._changed.wait(left)

    def of_request(self, request_id: str) -> Span:
        """The server span, or the first one within it, of a request with this id."""
        return self.wait_for(lambda span: span.attributes.get("convoy.request_id") == request_id)

    def within(self, parent: Span) -> list[Span]:
        """The spans whose parent this is, by the time at which they began. A parent arrives after them."""
        found = [span for span in self.spans if (span.trace_id, span.parent) == (parent.trace_id, parent.span_id)]
        return sorted(found, key=lambda span: (span.began, span.ended))

    def close(self) -> None:
        self._server.stop(0).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code,
        span.status.message,
        _values(span.attributes),
        [{"name": event.name, **_values(event.attributes)} for event in span.events],
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
