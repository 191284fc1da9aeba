"""One refusal speaks for those that would be refused like it, and for no others."""

import math

import pytest

from convoy.service.errors import PredictedLate
from convoy.service.frontend.admission import Outlook

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
