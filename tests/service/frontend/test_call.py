"""What is decided about a request around its handling."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.errors import ModelUnavailable, QueueFull
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call, missed_deadline
from convoy.service.frontend.transport.interface import Received

MS = 0.001


def call(method: str, arrived: float, deadline: float) -> Call:
    return Call(method, Received(b"", arrived), deadline, Gate(max_requests=1, max_bytes=1))


@pytest.mark.parametrize(
    ("given", "gone", "missed"),
    [
        (1.0, 1.0, True),
        (1.0, 901 * MS, True),  # the caller's clock began earlier than ours
        (1.0, 899 * MS, False),
        (20 * MS, 15.01 * MS, True),
        (20 * MS, 14 * MS, False),
        (math.inf, 1e6, False),
    ],
)
def test_a_caller_that_goes_when_its_time_is_about_over_has_missed_its_deadline(
    given: float, gone: float, missed: bool
) -> None:
    arrived = 5.0
    assert missed_deadline(call("Classify", arrived, arrived + given), arrived + gone) == missed


def test_a_timeout_only_ever_shortens_the_deadline() -> None:
    infer = call("ModelInfer", arrived=1.0, deadline=3.0)
    infer.within(5.0)
    assert infer.deadline == 3.0
    infer.within(0.5)
    assert infer.deadline == 1.5


def test_the_gate_counts_who_is_inside_and_refuses_the_rest() -> None:
    gate = Gate(max_requests=2, max_bytes=100)
    gate.enter(1)
    gate.enter(1)
    with pytest.raises(QueueFull) as caught:
        gate.enter(1)
    assert caught.value.retry_after
    gate.leave(1)
    gate.enter(1)
    gate.close()
    gate.leave(1)
    with pytest.raises(ModelUnavailable, match="shutting down"):
        gate.enter(1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60))
def test_bytes_inside_never_exceed_the_bound_and_nothing_that_fits_is_refused(steps: list[tuple[bool, int]]) -> None:
    gate = Gate(max_requests=1000, max_bytes=100)
    inside: list[int] = []
    for comes, nbytes in steps:
        if comes and sum(inside) + nbytes <= 100:
            gate.enter(nbytes)
            inside.append(nbytes)
        elif comes:
            with pytest.raises(QueueFull, match=f"in addition to {sum(inside)} in flight"):
                gate.enter(nbytes)
        elif inside:
            gate.leave(inside.pop(nbytes % len(inside)))
    for nbytes in inside:
        gate.leave(nbytes)
    gate.enter(100)
