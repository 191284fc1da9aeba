"""What each policy does exactly at its limits. Times are sums of powers of two, so that no rounding decides."""

import math
from collections.abc import Mapping, Sequence

import pytest

from convoy.service.config import PolicyName
from convoy.service.engine.scheduler.policies import POLICIES, Traffic
from convoy.service.engine.scheduler.request_queue import Key, Limits, Queue
from convoy.service.ipc.channel import Request

GAINS = {1: 1.125, 2: 1.25, 3: 1.375, 4: 1.5}  # seconds of batches by size
FAR = 100.0


def waiting(
    deadlines: Sequence[float],
    policy: PolicyName = "deferred",
    times: Mapping[int, float] = GAINS,
    objective: float = FAR,
) -> Queue:
    """A queue of requests of one row with these deadlines, all due in time for the objective."""
    queue = Queue(Key("model", 1, ()), Limits(max(times), 0.0, 100, objective=objective, policy=policy))
    queue.start_with(times)
    put(queue, deadlines)
    return queue


def put(queue: Queue, deadlines: Sequence[float]) -> None:
    for number, deadline in enumerate(deadlines):
        queue.put(Request(number, "front end", 1, 0.0, deadline), queue.limits.objective, number)


def select(queue: Queue, now: float = 0.0) -> tuple[list[object], list[object]]:
    late, batch = POLICIES[queue.limits.policy].select(queue, now)
    return [each.id for each in late], [each.id for each in batch]


@pytest.mark.parametrize(("gap", "waits"), [(1.0, True), (1.001, False)])
def test_gap_may_cost_what_the_next_row_saves_and_the_work_around_a_batch(gap: float, waits: bool) -> None:
    """The second row costs 0.125 s in this batch and 1.125 s in its own, with 0.5 ms around it."""
    close_at = POLICIES["deferred"].close_at(waiting([math.inf]), Traffic(0.0, gap, following=True))
    assert (close_at > -math.inf) == waits


def test_request_that_a_run_answers_exactly_in_time_runs() -> None:
    assert select(waiting([2.125]), now=1.0) == ([], [0])


def test_request_that_no_run_can_answer_in_time_is_late() -> None:
    assert select(waiting([2.0]), now=1.0) == ([0], [])


def test_one_tight_request_gives_way_to_those_who_gain_from_a_large_batch() -> None:
    # The second is answered exactly in time in a batch of three, so the first alone is in the way of two more rows.
    assert select(waiting([1.125, 1.375, FAR])) == ([0], [1, 2])


def test_tight_requests_do_not_give_way_to_as_few_as_they_are() -> None:
    # Two would have to go, so that two more rows run.
    assert select(waiting([1.125, 1.25, FAR])) == ([], [0])


def test_tight_request_stays_where_its_small_batch_has_half_the_throughput() -> None:
    assert select(waiting([1.0, FAR, FAR], times={1: 1.0, 3: 1.5})) == ([], [0])


def test_batch_stays_of_its_size_when_a_tight_request_has_given_way() -> None:
    assert select(waiting([1.125, *[FAR] * 6])) == ([0], [1, 2, 3, 4])


def test_rows_are_split_only_where_two_batches_take_less_time() -> None:
    """Four rows take as long as two, so batches have four; two rows alone may take longer than one by one."""
    assert select(waiting([FAR] * 2, times={1: 1.0, 2: 2.0, 4: 2.0})) == ([], [0, 1])
    assert select(waiting([FAR] * 2, times={1: 0.5, 2: 1.5, 4: 1.5})) == ([], [0])


@pytest.mark.parametrize("policy", ["eager", "timeout", "aimd"])
def test_deadline_that_is_now_is_too_late_under_every_simple_policy(policy: PolicyName) -> None:
    assert select(waiting([1.0, 1.125], policy), now=1.0) == ([0], [1])


def test_aimd_grows_with_full_batches_until_one_takes_longer_than_the_objective() -> None:
    queue = waiting([FAR] * 2, "aimd", times={1: 0.25, 4: 1.0}, objective=0.5)
    queue.cap = 2.0
    assert select(queue) == ([], [0, 1])
    assert queue.cap == 3.0  # two rows take exactly as long as they may
    put(queue, [FAR] * 2)
    select(queue)
    assert queue.cap == pytest.approx(2.7)


def test_aimd_never_stops_at_less_than_one_row() -> None:
    queue = waiting([FAR], "aimd", times={1: 1.0}, objective=0.5)
    assert select(queue) == ([], [0])
    assert queue.cap == 1.0


def test_nexus_runs_what_ends_exactly_in_time_and_keeps_its_size() -> None:
    limits = {1: 1.125, 2: 1.25}
    assert select(waiting([1.0, 1.25, FAR, FAR], "nexus", times=limits)) == ([0], [1, 2])
