"""Which requests leave their times in the log."""

import logging
from typing import NamedTuple

import pytest

from convoy.service import metrics
from convoy.service.access import Caller, Entry
from convoy.service.frontend.trace import Trace
from convoy.service.frontend.tracing import DEFAULT_RATE, Traces
from convoy.service.ipc.messages import Tracing

TIMES = [0.001 * number for number in range(len(metrics.STAGES) + 1)]


class Request(NamedTuple):
    """What a line says of a request."""

    model: str
    method: str = "ModelInfer"
    version: str = "3"
    caller: Caller | None = None
    trace: Trace | None = None


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_nothing_is_traced_unless_it_is_asked_for(lines: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    assert not traces.on
    traces.record(Request("a"), TIMES)
    assert lines.records == []
    assert (traces.is_on("a"), traces.rate("a")) == (False, DEFAULT_RATE)


def test_one_of_so_many_requests_for_a_model_is_traced(lines: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    traces.set(Tracing("a", on=True, rate=3))
    assert traces.on
    for number in range(7):
        traces.record(Request("a", version=str(number)), TIMES)
        traces.record(Request("b"), TIMES)
    assert [record.__dict__["fields"]["version"] for record in lines.records] == ["0", "3", "6"]


def test_setting_of_a_model_comes_before_that_for_all(lines: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    traces.set(Tracing("", on=True, rate=1))
    traces.set(Tracing("quiet", on=False))
    traces.set(Tracing("seldom", rate=5))
    for model in ("a", "quiet", "seldom"):
        for _ in range(5):
            traces.record(Request(model), TIMES)
    traced = [record.__dict__["fields"]["model"] for record in lines.records]
    assert [traced.count(model) for model in ("a", "quiet", "seldom")] == [5, 0, 1]
    traces.set(Tracing("quiet"))
    assert traces.is_on("quiet")
    traces.set(Tracing(""))
    assert not traces.on


def test_line_names_the_request_and_the_seconds_of_its_stages(lines: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    traces.set(Tracing("", on=True, rate=1))
    caller = Caller("ci", Entry(models=("*",)))
    traces.record(Request("a", caller=caller, trace=Trace("4711", "")), TIMES, images=2)
    (record,) = lines.records
    assert (record.getMessage(), record.levelname) == ("request traced", "INFO")
    fields = record.__dict__["fields"]
    names = {"method": "ModelInfer", "model": "a", "version": "3", "caller": "ci", "request_id": "4711", "images": 2}
    assert fields.items() >= names.items()
    assert fields["decode_seconds"] == 0.001
    assert fields["total_seconds"] == 0.008
