"""Which names of a call go into the log, and into which lines."""

import logging
import time

import pytest

from convoy.service.access import Caller, Entry
from convoy.service.errors import BadImage
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call
from convoy.service.frontend.trace import Trace, read
from convoy.service.frontend.transport.interface import Received

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("text", ["a", "4711", "~" * 128, "a/b:c=d;\"'\\"])
def test_visible_text_is_a_request_id(text: str) -> None:
    assert read(text, None) == read(text.encode(), None) == Trace(text, "")


@pytest.mark.parametrize("text", ["", " ", "a b", "a\nb", "a\x1b[31m", "ü", "a" * 129, "a\x00"])
def test_other_text_is_not(text: str) -> None:
    assert read(text, None) is None
    assert read(text.encode(), None) is None
    assert read(b"\xff", None) is None


def test_parent_has_the_form_of_w3c() -> None:
    assert read(None, PARENT) == Trace("", PARENT)
    for wrong in ("", PARENT[:-1], PARENT.upper(), PARENT + "0", "00-1-2-01", PARENT.replace("-", "_")):
        assert read("id", wrong) == Trace("id", "")
    assert read(None, None) is None


def test_record_has_the_names_that_there_are() -> None:
    assert Trace("id", PARENT).fields() == {"request_id": "id", "traceparent": PARENT}
    assert Trace("id", "").fields() == {"request_id": "id"}


def call(trace: Trace | None) -> Call:
    received = Received(b"", time.monotonic(), Caller("ci", Entry(certificate=True)), trace)
    return Call("Classify", received, float("inf"), Gate(1, 1))


def test_error_is_logged_with_the_names_of_its_call(caplog: pytest.LogCaptureFixture) -> None:
    call(Trace("id", PARENT)).refuse(ValueError("secret"))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    expected = {"method": "Classify", "caller": "ci", "request_id": "id", "traceparent": PARENT}
    assert vars(record)["fields"] == expected


def test_refusal_is_logged_only_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        call(Trace("id", "")).refuse(BadImage("no image"))
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG):
        call(Trace("id", "")).refuse(BadImage("no image"))
    (record,) = caplog.records
    fields = vars(record)["fields"]
    assert (fields["reason"], fields["detail"], fields["request_id"]) == ("BAD_IMAGE", "no image", "id")
