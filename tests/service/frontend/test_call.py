"""What is decided about a request around its handling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.errors import ModelUnavailable, QueueFull
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call, missed_deadline
from convoy.service.frontend.transport.interface import Received
from convoy.service.ipc.channel import NEVER

MS = 1_000_000
SECOND = 1000 * MS


def call(method: str, arrived: int, deadline: int) -> Call:
    return Call(method, Received(b"", arrived), deadline, Gate(max_requests=1, max_bytes=1))


@pytest.mark.parametrize(
    ("given", "gone", "missed"),
    [
        (SECOND, 1000 * MS, True),
        (SECOND, 901 * MS, True),  # the caller's clock began earlier than ours
        (SECOND, 899 * MS, False),
        (20 * MS, 15 * MS, True),
        (20 * MS, 14 * MS, False),
        (NEVER, 10**6 * SECOND, False),
    ],
)
def test_a_caller_that_goes_when_its_time_is_about_over_has_missed_its_deadline(
    given: int, gone: int, missed: bool
) -> None:
    arrived = 5 * SECOND
    deadline = NEVER if given == NEVER else arrived + given
    assert missed_deadline(call("Classify", arrived, deadline), arrived + gone) == missed


def test_a_timeout_only_ever_shortens_the_deadline() -> None:
    infer = call("ModelInfer", arrived=SECOND, deadline=3 * SECOND)
    infer.within(5.0)
    assert infer.deadline == 3 * SECOND
    infer.within(0.5)
    assert infer.deadline == SECOND + SECOND // 2


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
            with pytest.raises(QueueFull, match=f"beside {sum(inside)} in flight"):
                gate.enter(nbytes)
        elif inside:
            gate.leave(inside.pop(nbytes % len(inside)))
    for nbytes in inside:
        gate.leave(nbytes)
    gate.enter(100)
