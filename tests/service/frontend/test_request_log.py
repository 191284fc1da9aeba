"""Which requests the log has a line of, and how many lines a second."""

import logging
from typing import Any, Literal

import pytest

from convoy.service.access import Caller, Entry
from convoy.service.frontend.request_log import RequestLog
from convoy.service.frontend.trace import Trace


class Asked:
    """A call."""

    method = "Classify"
    model = "letters"
    version = "1"
    arrived = 10.0
    caller: Caller | None = None
    trace: Trace | None = None
    peer = "10.0.0.7"


@pytest.fixture
def clock() -> list[float]:
    return [10.5]


@pytest.fixture
def written(clock: list[float]) -> RequestLog:
    return RequestLog(lambda: clock[0])


def fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = record.__dict__["fields"]
    return found


def test_refusal_has_all_that_finds_the_request(written: RequestLog, caplog: pytest.LogCaptureFixture) -> None:
    call = Asked()
    call.caller = Caller("robot", Entry())
    call.trace = Trace("a-17", "")
    written.refused(call, "BAD_IMAGE", "image is 0 bytes")
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "request refused")
    assert fields(record) == {
        "method": "Classify",
        "model": "letters",
        "version": "1",
        "seconds": 0.5,
        "peer": "10.0.0.7",
        "caller": "robot",
        "request_id": "a-17",
        "reason": "BAD_IMAGE",
        "detail": "image is 0 bytes",
    }


def test_long_detail_is_cut(written: RequestLog, caplog: pytest.LogCaptureFixture) -> None:
    written.refused(Asked(), "BAD_IMAGE", 10_000 * "x")
    assert fields(caplog.records[0])["detail"] == 500 * "x"


def test_no_more_lines_than_100_in_a_second_and_the_others_are_counted(
    written: RequestLog, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(130):
        written.answered(Asked())
    assert [record.message for record in caplog.records] == 100 * ["request answered"]
    clock[0] += 1
    written.refused(Asked(), "QUEUE_FULL")
    assert [record.message for record in caplog.records[100:]] == [
        "30 requests were not logged: there is room for 100 lines a second",
        "request refused",
    ]
    clock[0] += 1
    written.refused(Asked(), "QUEUE_FULL")
    assert len(caplog.records) == 103  # nothing was left out, so nothing is counted


def test_limit_is_a_setting(written: RequestLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    written.set("all", 0)  # none
    for _ in range(1000):
        written.answered(Asked())
    assert len(caplog.records) == 1000
    written.set("all", 7)
    for _ in range(1000):
        written.refused(Asked(), "QUEUE_FULL")
    assert len(caplog.records) == 1000  # there were more in this second


@pytest.mark.parametrize(
    ("setting", "failed", "every"), [("none", False, False), ("failed", True, False), ("all", True, True)]
)
def test_setting_decides(
    written: RequestLog, setting: Literal["none", "failed", "all"], failed: bool, every: bool
) -> None:
    written.set(setting)
    assert (written.failed, written.all) == (failed, every)
