"""Spans on their way to a collector, over OTLP: from a thread of OpenTelemetry's, through a queue that may overflow.

The only module that imports OpenTelemetry, and only once it is needed. A collector that is slow or dead costs spans,
and one line of the log; never a request.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version as package_version
from typing import Any

from convoy.service.config import TracingConfig
from convoy.service.errors import BadConfig
from convoy.service.frontend.spans import SPANS, Ended, stages

log = logging.getLogger(__name__)

_QUIET = 60.0  # seconds without another warning: a collector may come and go


def begin(config: TracingConfig, paths: Mapping[str, str]) -> "Exporting | None":
    """Begins to record spans and to send them, if that is on. `paths`: see Spans.set. Raises BadConfig for a variable
    of OpenTelemetry that it cannot use."""
    if not config.enabled:
        return None
    # gRPC would write lines of its own to stderr, such as for every attempt to reach a collector.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    said = _Said()
    library = logging.getLogger("opentelemetry")
    library.handlers[:], library.propagate = [said], False
    try:
        exporting = Exporting(config, said)
    except Exception as error:
        raise BadConfig(f"tracing: OpenTelemetry cannot use its variables (OTEL_...): {error}"[:500]) from None
    SPANS.set(config.share, exporting.send, paths, config.requests_per_second)
    return exporting


class Exporting:
    """The way of spans out of this process. One writer: the front end's loop."""

    def __init__(self, config: TracingConfig, said: "_Said") -> None:
        from opentelemetry import trace  # noqa: PLC0415  see above
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

        class Ids(RandomIdGenerator):
            """Identifiers that were chosen before: the caller knows them already. Those of stages are not."""

            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id

            def generate_span_id(self) -> int:
                chosen, self.span_id = self.span_id, 0
                return chosen or super().generate_span_id()

        class Watched(SpanExporter):
            """The exporter, with one line of the log when it begins to fail, and one when that is over."""

            def __init__(self) -> None:
                self._exporter = OTLPSpanExporter(endpoint=config.endpoint or None)
                self._lost = 0  # since the log says so
                self._quiet_until = 0.0

            def export(self, spans: Any) -> SpanExportResult:
                result = self._exporter.export(spans)
                if result is not SpanExportResult.SUCCESS:
                    if not self._lost and time.monotonic() >= self._quiet_until:
                        log.warning("spans are lost: %s", said.last)
                        self._quiet_until = time.monotonic() + _QUIET
                        self._lost = len(spans)
                    elif self._lost:
                        self._lost += len(spans)
                elif self._lost:
                    log.info("spans arrive again; %d were lost", self._lost)
                    self._lost = 0
                return result

            def shutdown(self) -> None:
                self._exporter.shutdown()

        resource = Resource.create({"service.version": package_version("convoy"), "process.pid": os.getpid()})
        if config.service_name or str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: config.service_name or "convoy"}))
        self._ids = Ids()
        # What is sampled has been decided before a span is made.
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        self._processor = BatchSpanProcessor(Watched())
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("convoy", package_version("convoy"))
        self._trace = trace
        self._nowhere = Context()
        self._failed = False

    def send(self, ended: Ended) -> None:
        """Queues the spans of a request."""
        try:
            self._send(ended)
        except Exception:  # the request itself is answered
            if not self._failed:
                self._failed = True
                log.exception("a span was not recorded; further ones are left out of the log")

    def _send(self, ended: Ended) -> None:
        trace, of = self._trace, ended.span
        offset = time.time_ns() - time.monotonic_ns()  # anew each time: the clock may be set
        context = self._nowhere
        if of.parent:
            state = trace.TraceState.from_header([of.state]) if of.state else None
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            remote = of.kind == "server"
            caller = trace.SpanContext(of.trace_id, of.parent, remote, flags, state)
            context = trace.set_span_in_context(trace.NonRecordingSpan(caller), context)
        self._ids.trace_id, self._ids.span_id = of.trace_id, of.span_id
        kind = trace.SpanKind.SERVER if of.kind == "server" else trace.SpanKind.INTERNAL
        began = _ns(ended.began, offset)
        span = self._tracer.start_span(ended.name, context, kind, dict(ended.attributes), start_time=began)
        within = trace.set_span_in_context(span, context)
        for name, begin, end, attributes in stages(ended):
            stage = self._tracer.start_span(name, within, attributes=attributes, start_time=_ns(begin, offset))
            stage.end(_ns(end, offset))
        for refusal in of.refusals:
            attributes = {"error.type": refusal.reason, "convoy.detail": refusal.message}
            span.add_event("refused", attributes, _ns(refusal.time, offset))
        if ended.error is not None:
            span.set_status(trace.Status(trace.StatusCode.ERROR, ": ".join(filter(None, ended.error))))
        span.end(_ns(ended.ended, offset))

    async def flush(self, seconds: float) -> None:
        """Sends what is queued, and waits for that so long at most."""
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def flush() -> None:
            self._processor.force_flush()
            with suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(sent.set)

        # A thread of its own, which nobody joins: the library takes no time limit.
        threading.Thread(target=flush, name="flush", daemon=True).start()
        try:
            await asyncio.wait_for(sent.wait(), seconds)
        except TimeoutError:
            log.warning("spans were still queued after %g s", seconds)


class _Said(logging.Handler):
    """Keeps what the library would write to the log, over and over: the last line says why it fails."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._full = False

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        text = record.getMessage()
        if not text.startswith("Queue full"):
            self.last = text
        elif not self._full:
            self._full = True
            log.warning("spans are lost: more end than the collector accepts, and the queue is full")


def _ns(at: float, offset: int) -> int:
    return offset + round(at * 1e9)
