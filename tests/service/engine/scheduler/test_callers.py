"""When the next request is expected, when the device is free, and by how much a request would be late."""

import math
from collections.abc import Sequence

import pytest

from convoy.service.engine.scheduler.batcher import Batch, _Callers, _excess, _Lanes
from convoy.service.engine.scheduler.policies import Traffic
from convoy.service.engine.scheduler.request_queue import Key, Limits, Queue
from convoy.service.ipc.channel import Request

KEY = Key("model", 1, ())


def after(*arrivals: float) -> _Callers:
    callers = _Callers()
    for each in arrivals:
        callers.arrive(each)
    return callers


def test_pace_is_an_average_of_the_gaps_between_arrivals() -> None:
    callers = after(5.0)
    assert (callers.gap, callers.long_gap) == (math.inf, math.inf)
    callers = after(5.0, 5.0625)
    assert (callers.gap, callers.long_gap) == (0.0625, 0.0625)
    callers = after(5.0, 5.0625, 5.09375)
    assert callers.gap == pytest.approx(0.0625 - 0.1 * 0.03125)
    assert callers.long_gap == pytest.approx(0.0625 - 0.01 * 0.03125)


def test_pause_of_a_tenth_of_a_second_ends_the_pace_but_counts_in_the_long_run() -> None:
    callers = after(-0.0625, 0.0, 0.1)
    assert callers.gap == math.inf
    assert callers.long_gap == pytest.approx(0.0625 + 0.01 * 0.0375)
    callers.arrive(0.15)
    assert callers.gap == pytest.approx(0.05)


def test_arrivals_out_of_order_have_no_gap() -> None:
    callers = after(1.0, 0.5)
    assert (callers.gap, callers.last) == (0.0, 0.5)
    callers.arrive(0.5625)
    assert callers.gap == pytest.approx(0.00625)


def test_request_on_its_way_is_expected_at_the_pace_or_at_once() -> None:
    callers = after(1.0)
    callers.following = {"first": 0, "second": 2}
    assert callers.expected() == Traffic(1.0, 0.0, following=True)
    callers.arrive(1.0625)
    assert callers.expected() == Traffic(1.0625, 0.0625, following=True)


def test_pace_counts_only_while_callers_overlap() -> None:
    callers = after(1.0, 1.0625)
    callers.following = {"first": 0}
    assert callers.expected() == Traffic(1.0625, math.inf, following=False)
    callers.overlapping_until = 1.0625
    assert callers.expected().gap == math.inf
    callers.overlapping_until = 1.07
    assert callers.expected() == Traffic(1.0625, 0.0625, following=False)


def test_as_many_arrive_in_a_span_as_the_shorter_gap_says() -> None:
    callers = _Callers()
    assert callers.within(100.0) == 0.0
    callers.gap, callers.long_gap = 0.5, 2.0
    assert [callers.within(span) for span in (-1.0, 0.0, 1.0, 3.0)] == [0.0, 0.0, 2.0, 6.0]
    callers.gap, callers.long_gap = 2.0, 0.5
    assert callers.within(1.0) == 2.0
    callers.gap = 0.0
    assert callers.within(0.5) == math.inf
    assert callers.within(0.0) == 0.0


def lanes_with(count: int, *running: tuple[float, float]) -> _Lanes:
    """Batches that end at a time and use a share of a lane."""
    lanes = _Lanes(count)
    for ends, share in running:
        lanes.start(Batch(KEY, [], ends, share))
    return lanes


def test_batches_use_their_shares_until_they_end() -> None:
    lanes = lanes_with(2, (1.0, 0.5), (2.0, 1.0))
    assert lanes.free == 0.5
    lanes.end(lanes.running[1])
    assert (lanes.free, len(lanes.running)) == (1.5, 1)
    lanes.end(lanes.running[0])
    assert lanes.free == 2.0


def test_five_fifths_fit_and_a_sixth_does_not() -> None:
    assert lanes_with(1, *[(1.0, 0.2)] * 4).fits(0.2)  # though 1 - 4 x 0.2 is 0.19999999999999996
    assert not lanes_with(1, *[(1.0, 0.2)] * 5).fits(0.2)


@pytest.mark.parametrize(
    ("share", "now", "free"),
    [(0.25, 0.0, 0.0), (0.5, 0.0, 1.0), (0.75, 0.0, 1.0), (1.0, 0.0, 3.0), (0.5, 2.0, 2.0), (1.0, 2.0, 3.0)],
)
def test_share_is_free_when_enough_batches_have_ended(share: float, now: float, free: float) -> None:
    assert lanes_with(1, (3.0, 0.25), (1.0, 0.5)).free_at(share, now) == free


def test_fifths_are_free_when_as_many_have_ended() -> None:
    lanes = lanes_with(1, *((ends, 0.2) for ends in (5.0, 4.0, 3.0, 2.0, 1.0)))
    assert [lanes.free_at(fifths / 5, 0.0) for fifths in range(1, 6)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def late_by(
    deadlines: Sequence[float] = (),
    due: float = 50.0,
    rows: int = 1,
    gap: float = math.inf,
    batch_size: int = 4,
    lanes: int = 1,
    instances: int = 1,
) -> float:
    """By how much a request with the deadline 10 would be late whose queue can start at 2.

    Requests of one row with these deadlines wait. Batches of 1 to 4 rows take 1, 1.25, 1.375 and 1.5 s.
    """
    queue = Queue(KEY, Limits(4, 0.0, 100, objective=30.0, instances=instances))
    queue.start_with({1: 1.0, 2: 1.25, 4: 1.5})
    for number, deadline in enumerate(deadlines):
        queue.put(Request(number, "front end", 1, 0.0, deadline), min(deadline, 30.0), number)
    queue.batch_size = batch_size
    callers = _Callers()
    callers.gap = gap
    return _excess(queue, Request(99, "front end", rows, 0.0, 10.0), due, callers, 1.0, 2.0, lanes)


@pytest.mark.parametrize(
    ("waiting", "finish"), [(0, 3.0), (1, 3.25), (3, 3.5), (4, 4.5), (5, 4.75), (8, 6.0), (10, 6.375)]
)
def test_request_ends_after_whole_batches_and_with_the_rest(waiting: int, finish: float) -> None:
    assert late_by([20.0] * waiting) == finish - 10.0


def test_whole_batches_before_it_run_on_several_lanes_or_instances() -> None:
    assert late_by([20.0] * 5, lanes=2) == 2 + 0.75 + 1.25 - 10
    assert late_by([20.0] * 5, instances=2) == 2 + 0.75 + 1.25 - 10


@pytest.mark.parametrize(("gap", "seconds"), [(0.25, 1.5), (0.5, 1.375), (0.6, 1.25), (1.0, 1.25), (1.1, 1.0)])
def test_requests_that_come_before_the_start_join(gap: float, seconds: float) -> None:
    assert late_by(gap=gap) == 2.0 + seconds - 10.0


def test_request_larger_than_a_batch_runs_whole() -> None:
    assert late_by(rows=4, batch_size=2) == 2.0 + 1.5 - 10.0


def test_request_that_pushes_in_is_as_late_as_it_makes_the_last() -> None:
    assert late_by([3.125], due=3.0) == 2.0 + 1.25 - 3.125
    assert late_by([3.125], due=3.125) == 2.0 + 1.25 - 10.0  # behind it
    assert late_by([math.inf], due=3.0) == 2.0 + 1.0 - 10.0  # the last has time
    assert late_by([3.0, 3.125, 3.25, 3.5], due=3.25, lanes=2) == 2.0 + (1.5 + 1.0) / 2 - 3.5
