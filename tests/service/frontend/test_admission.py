"""Who is admitted while how much is in flight; a refusal speaks for those like it, and for no others."""

import asyncio
import math

import pytest

from convoy.service.errors import ModelUnavailable, PredictedLate, QueueFull
from convoy.service.frontend.admission import Gate, Outlook

MS = 0.001
LETTERS = ("letters", 1)


def refused_by(excess: float, rows: int = 2, deadline: float = 100 * MS) -> Outlook:
    """At 0, a request due by `deadline` was refused by so many seconds."""
    outlook = Outlook()
    outlook.learn(LETTERS, rows, deadline, PredictedLate("late", retry_after=excess), 0)
    return outlook


@pytest.mark.parametrize(("rows", "deadline", "now"), [(2, 100, 0), (3, 100, 1), (2, 114, 5)])
def test_what_asks_for_as_much_by_a_time_that_is_taken_is_refused(rows: int, deadline: float, now: int) -> None:
    with pytest.raises(PredictedLate, match=f"'letters' would answer {115 - deadline}.0 ms after") as refusal:
        refused_by(0.020).check("letters", LETTERS, rows, deadline * MS, now * MS)
    assert refusal.value.retry_after == pytest.approx(max(0.010, (115 - deadline) / 1000))


@pytest.mark.parametrize(
    ("rows", "deadline", "now"),
    [
        (1, 100, 0),  # less work
        (2, 99, 0),  # it would come before the one that was refused
        (2, 116, 0),  # there is time, but for what may be done earlier
        (2, 100, 6),  # the refusal is old
        (2, math.inf, 0),
    ],
)
def test_what_the_engine_may_still_take_is_left_to_it(rows: int, deadline: float, now: int) -> None:
    refused_by(0.020).check("letters", LETTERS, rows, deadline * MS, now * MS)


def test_models_stand_for_themselves() -> None:
    refused_by(0.020).check("letters", ("letters", 2), 2, 100 * MS, 0)


def test_a_refusal_by_a_hair_says_nothing() -> None:
    refused_by(0.010).check("letters", LETTERS, 2, 100 * MS, 0)


def test_a_refusal_of_a_request_without_a_deadline_of_its_own_says_nothing() -> None:
    refused_by(0.020, deadline=math.inf).check("letters", LETTERS, 2, math.inf, 0)


def test_refusal_that_does_not_say_how_late_it_would_be_says_nothing() -> None:
    outlook = Outlook()
    outlook.learn(LETTERS, 2, 100 * MS, PredictedLate("late"), 0)
    outlook.check("letters", LETTERS, 2, 100 * MS, 0)


def test_old_refusal_is_forgotten_whatever_time_a_later_request_asks_at() -> None:
    outlook = refused_by(0.020)
    outlook.check("letters", LETTERS, 2, 100 * MS, 6 * MS)
    outlook.check("letters", LETTERS, 2, 100 * MS, 0)


def test_request_more_than_are_allowed_is_refused_until_one_leaves() -> None:
    gate = Gate(max_requests=2, max_bytes=100)
    gate.enter(10)
    gate.enter(20)
    with pytest.raises(QueueFull, match="2 requests are in flight, want at most 2") as refusal:
        gate.enter(0)
    assert refusal.value.retry_after == 0.1
    gate.leave(10)
    gate.enter(30)
    assert (gate.requests, gate.bytes) == (2, 50)


def test_bytes_beyond_those_allowed_are_refused_until_some_leave() -> None:
    gate = Gate(max_requests=10, max_bytes=100)
    gate.enter(60)
    with pytest.raises(QueueFull, match="41 bytes in addition to 60 in flight, want at most 100") as refusal:
        gate.enter(41)
    assert refusal.value.retry_after == 0.1
    gate.enter(40)  # exactly as much as fits
    gate.leave(60)
    gate.enter(60)
    assert (gate.requests, gate.bytes) == (2, 100)


def test_closed_gate_admits_nothing_and_is_empty_once_the_last_has_left() -> None:
    async def scenario() -> None:
        gate = Gate(max_requests=10, max_bytes=100)
        await asyncio.wait_for(gate.wait_empty(), 5)  # nothing has come yet
        gate.enter(1)
        gate.enter(2)
        gate.close()
        assert gate.closed.is_set()
        with pytest.raises(ModelUnavailable, match="shutting down"):
            gate.enter(1)
        empty = asyncio.ensure_future(gate.wait_empty())
        gate.leave(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not empty.done()
        gate.leave(2)
        await asyncio.wait_for(empty, 5)

    asyncio.run(scenario())


def test_whoever_counts_is_told_of_each_that_comes_and_goes() -> None:
    seen: list[tuple[int, int]] = []
    gate = Gate(10, 100, lambda: seen.append((gate.requests, gate.bytes)))
    gate.enter(5)
    gate.enter(7)
    gate.leave(5)
    assert seen == [(1, 5), (2, 12), (1, 7)]
