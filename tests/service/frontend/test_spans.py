"""Which calls are sampled, and what is recorded of one."""

import asyncio
import time
from collections import Counter

import pytest

from convoy.service import metrics
from convoy.service.access import Caller, Entry
from convoy.service.errors import BadImage
from convoy.service.frontend import spans, trace
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call
from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.spans import Ended, Span, Spans, stages
from convoy.service.frontend.trace import Trace, read
from convoy.service.frontend.transport.interface import Received
from convoy.service.repository import Version

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-{SPAN_ID}-{flags}" for flags in ("01", "00"))
ROW = Version(model="letters", version=3, state="READY", provider="CPUExecutionProvider")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    """The requests that end while spans are recorded, of all callers that want it and of half of the others."""
    found: list[Ended] = []
    recording = Spans(chance=iter([0.4, 0.6] * 1000).__next__)
    recording.set(0.5, found.append, {"Classify": "convoy.v1.Vision/Classify"})
    for module in (spans, trace):
        monkeypatch.setattr(module, "SPANS", recording)
    monkeypatch.setattr("convoy.service.frontend.call.SPANS", recording)
    return found


def call(names: Trace | None, *, streamed: bool = False) -> Call:
    received = Received(b"", time.monotonic(), Caller("ci", Entry(models=("*",), certificate=True)), names)
    return Call("Classify", received, float("inf"), Gate(1, 1), streamed=streamed)


def test_caller_decides_for_its_trace(ended: list[Ended]) -> None:
    for flags in ("01", "03", "ff"):
        found = read(None, f"00-{TRACE_ID}-{SPAN_ID}-{flags}", b"vendor=1")
        assert found is not None
        assert found.span is not None
        assert (f"{found.span.trace_id:032x}", f"{found.span.parent:016x}") == (TRACE_ID, SPAN_ID)
        assert (found.span.state, found.state) == ("vendor=1", "vendor=1")
    for flags in ("00", "02", "fe"):
        found = read(None, f"00-{TRACE_ID}-{SPAN_ID}-{flags}", "vendor=1")
        assert found is not None
        assert (found.span, found.request_id) == (None, "")


def test_share_decides_for_traces_that_begin_here(ended: list[Ended]) -> None:
    found = [read(None, None) for _ in range(10)]
    assert [each is not None and each.span is not None for each in found] == [True, False] * 5
    sampled = [each for each in found if each is not None]
    assert len({each.request_id for each in sampled}) == 5
    for each in sampled:
        assert each.span is not None
        assert each.span.parent == 0
        assert each.request_id == f"{each.span.trace_id:032x}"
        assert dict(each.headers()) == {"x-request-id": each.request_id, "traceresponse": each.span.header}


def test_no_more_requests_are_recorded_in_a_second_than_there_is_room_for() -> None:
    now = [5.0]
    recording = Spans(chance=lambda: 0.0, clock=lambda: now[0])
    recording.set(1.0, lambda ended: None, {}, most=3)
    assert [recording.begin(parent) is not None for parent in (SAMPLED, "", SAMPLED, SAMPLED, "")] == [
        *3 * [True],
        False,
        False,
    ]
    now[0] = 6.0
    assert [recording.begin(UNSAMPLED), recording.begin(SAMPLED) is not None] == [None, True]


def test_invalid_parent_begins_a_trace(ended: list[Ended]) -> None:
    for wrong in (SAMPLED[:-1], SAMPLED.upper(), f"ff{SAMPLED[2:]}", f"00-{'0' * 32}-{SPAN_ID}-01", f"{SAMPLED}-x"):
        (found,) = filter(None, (read(None, wrong), read(None, wrong)))  # one of two
        assert found.span is not None
        assert (found.parent, found.span.parent) == ("", 0)


def test_later_versions_may_say_more(ended: list[Ended]) -> None:
    for later in (f"01{SAMPLED[2:]}", f"cc{SAMPLED[2:]}-what-the-future-will-be-like"):
        found = read(None, later)
        assert found is not None
        assert found.span is not None
        assert f"{found.span.trace_id:032x}" == TRACE_ID


def test_nothing_is_decided_where_it_is_off() -> None:
    assert read(None, None) is None
    assert read(None, SAMPLED, "vendor=1") == Trace("", SAMPLED, "vendor=1")
    assert call(read(None, SAMPLED)).span is None
    assert call(read(None, SAMPLED), streamed=True).span is None


def test_logged_call_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REQUESTS, "failed", True)
    one, other = read(None, None), read(None, None)
    assert one is not None
    assert other is not None
    assert one.request_id != other.request_id
    assert one.headers() == [("x-request-id", one.request_id)]
    assert read("mine", None) == Trace("mine", "")


def test_lines_about_a_sampled_call_name_its_span(ended: list[Ended]) -> None:
    found = read("id", SAMPLED)
    assert found is not None
    assert found.span is not None
    names = {"trace_id": TRACE_ID, "span_id": f"{found.span.span_id:016x}"}
    assert found.fields() == {"request_id": "id", "traceparent": SAMPLED, **names}
    assert found.unsampled().fields() == {"request_id": "id", "traceparent": SAMPLED}


def test_request_that_ends_is_sent_once(ended: list[Ended]) -> None:
    with call(read("id", SAMPLED)) as request:
        request.serves(ROW)
        assert request.span is not None
        request.span.answered([*([0.001] * 8), 0.008], images=2, batch_size=6, device=1)
    (sent,) = ended
    assert (sent.name, sent.began, sent.error) == ("convoy.v1.Vision/Classify", request.arrived, None)
    attributes = {"convoy.model": "letters", "convoy.version": "3", "convoy.provider": "CPUExecutionProvider"}
    attributes |= {"convoy.caller": "ci", "convoy.request_id": "id", "convoy.device": "1"}
    assert attributes.items() <= sent.attributes.items()
    assert (sent.attributes["convoy.images"], sent.attributes["convoy.batch_size"]) == (2, 6)
    found = stages(sent)
    assert [name for name, *_ in found] == list(metrics.STAGES)
    assert [begin for _, begin, _, _ in found[1:]] == [end for _, _, end, _ in found[:-1]]


def test_request_that_is_not_sampled_is_not_sent(ended: list[Ended]) -> None:
    with call(read("id", UNSAMPLED)):
        pass
    with call(None):
        pass
    assert ended == []


def test_refusal_and_failure_are_errors(ended: list[Ended]) -> None:
    with call(read(None, SAMPLED)) as request:
        request.refuse(BadImage("no image"))
    with call(read(None, SAMPLED)) as request:
        request.refuse(ValueError("secret"))
    assert [each.error for each in ended] == [("BAD_IMAGE", "no image"), ("INTERNAL", "internal error")]
    assert [each.attributes["error.type"] for each in ended] == ["BAD_IMAGE", "INTERNAL"]


def test_caller_that_leaves_is_no_error(ended: list[Ended]) -> None:
    call(read(None, SAMPLED)).__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    late = call(read(None, SAMPLED))
    late.deadline = late.arrived
    late.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert [each.attributes["rpc.response.status_code"] for each in ended] == ["CANCELLED", "DEADLINE_EXCEEDED"]
    assert [each.error for each in ended] == [None, ("DEADLINE_EXCEEDED", "the caller has left")]


def test_each_request_of_a_stream_is_decided_by_itself(ended: list[Ended]) -> None:
    names = read("id", SAMPLED)
    assert names is not None
    requests = [call(names.unsampled(), streamed=True) for _ in range(3)]
    assert len({request.span.span_id for request in requests if request.span is not None}) == 3
    assert {request.request_id for request in requests} == {"id"}
    alone = Counter(call(None, streamed=True).span is not None for _ in range(10))
    assert alone == {True: 5, False: 5}


def test_what_is_recorded_of_a_request_is_bounded() -> None:
    span = Span(1, 0, "", "server")
    for number in range(1000):
        span.answered([0.0] * 9, 1, number, None)
        span.refused("BAD_IMAGE", "no image")
    assert (len(span.stages), len(span.refusals), span.chunks) == (32, 32, 1000)
    found = stages(Ended(span, "", 0.0, 1.0, {}, None))
    assert len(found) == 32 * len(metrics.STAGES)
    assert found[-1][-1]["convoy.chunk"] == 31
