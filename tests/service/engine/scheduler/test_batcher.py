"""When batches close, what is in them, and who is refused, on a virtual clock."""

import heapq
import math
import random
import weakref
from collections import Counter
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.config import PolicyName
from convoy.service.engine.scheduler import batcher as scheduler
from convoy.service.engine.scheduler.batcher import Batch, Batcher
from convoy.service.engine.scheduler.policies import POLICIES as POLICY_TABLE
from convoy.service.engine.scheduler.request_queue import Key, Limits, Queue
from convoy.service.errors import ConvoyError, PredictedLate, QueueFull
from convoy.service.ipc.channel import Request

KEY = Key("model", 1, ((32, 32, 1),))
WIDE = Key("model", 1, ((64, 64, 1),))
OTHER = Key("other", 1, ((32, 32, 1),))
LIMITS = Limits(max_batch_size=4, max_queue_delay=0.010, max_queue=100)
LARGE = replace(LIMITS, max_batch_size=64)
# Seconds of batches by size: one device gains from batches, the other does not.
GAINS = {size: 0.005 + 0.001 * size for size in (1, 2, 4, 8, 16, 32, 64)}
FLAT = {size: 0.006 * size for size in (1, 2, 4, 8, 16, 32, 64)}
POLICIES: tuple[PolicyName, ...] = ("deferred", "eager", "timeout", "aimd", "nexus")


def request(
    number: Hashable,
    arrived: float = 0.0,
    rows: int = 1,
    deadline: float = math.inf,
    source: Hashable = "front end",
    low_priority: bool = False,
) -> Request:
    return Request(number, source, rows, arrived, deadline, low_priority, model=f"model of {number}")


def profiled(times: Mapping[int, float] = GAINS, limits: Limits = LIMITS, lanes: int = 1) -> Batcher:
    """A batcher that knows what batches of all three keys take."""
    batcher = Batcher(lanes)
    for key in (KEY, WIDE, OTHER):
        batcher.measured(key, limits, {size: time for size, time in times.items() if size <= limits.max_batch_size})
    return batcher


def fill(
    batcher: Batcher,
    *requests: Request,
    key: Key = KEY,
    limits: Limits = LIMITS,
    following: int = 0,
    company: int = 1,
) -> None:
    """Queue requests as an engine does; `following` and `company` are what their front end says beside the last."""
    for each in requests:
        said = (following, company) if each is requests[-1] else (len(requests), company)
        batcher.expect(key.model, each.source, *said, each.arrived)
        batcher.add(key, each, limits, each.arrived)


def run(batcher: Batcher, now: float = 0.0, seconds: float | None = None) -> list[Hashable]:
    """What runs now, which ends at once; [] where nothing does."""
    batch = batcher.next(now).batch
    if batch is None:
        return []
    batcher.ended(batch, [] if seconds is None else [(batch.rows, seconds)])
    return [each.id for each in batch.requests]


def late(batcher: Batcher, now: float) -> list[Hashable]:
    return [each.id for each in batcher.next(now).late]


def busy(batcher: Batcher, key: Key = KEY, limits: Limits = LIMITS, now: float = 0.0, rows: int = 1) -> Batch:
    """Occupy the device with a batch of so many rows."""
    fill(batcher, request("occupant", now, rows), key=key, limits=limits)
    batch = batcher.next(now).batch
    assert batch is not None
    return batch


def test_empty_batcher_has_nothing_to_do() -> None:
    decision = Batcher().next(0.0)
    assert (list(decision.late), decision.batch, decision.again) == ([], None, math.inf)


# What is known of work


def test_backlog_is_the_time_that_waiting_rows_need() -> None:
    batcher = profiled(FLAT)
    busy(batcher)
    fill(batcher, *(request(number) for number in range(3)))
    fill(batcher, request("other"), key=OTHER)
    assert batcher.backlog("model") == pytest.approx(3 * FLAT[1])
    assert batcher.backlog("other") == pytest.approx(FLAT[1])
    assert batcher.backlog("unknown") == 0
    batcher.cancel(("front end", "other"))
    assert batcher.backlog("other") == 0


def test_batch_knows_what_was_predicted_and_what_it_took() -> None:
    batcher = profiled()
    batch = busy(batcher)
    assert (batch.predicted, batch.took) == (pytest.approx(GAINS[1]), 0)
    batcher.ended(batch, [(1, 0.25)])
    assert batch.took == 0.25


def test_batch_of_an_unknown_shape_has_no_prediction() -> None:
    batch = busy(Batcher())
    assert batch.predicted == 0


def test_batch_that_took_several_runs_has_no_time() -> None:
    batcher = profiled()
    fill(batcher, request(1), request(2))
    batch = batcher.next(0.0).batch
    assert batch is not None
    batcher.ended(batch, [(1, 0.25), (1, 0.25)])
    assert batch.took == 0


# When a batch closes


def test_lone_caller_never_waits() -> None:
    batcher = profiled()
    for turn in range(100):
        fill(batcher, request(turn, arrived=turn / 1000), company=1)
        assert run(batcher, turn / 1000) == [turn]


@pytest.mark.parametrize("times", [GAINS, FLAT, {}], ids=["gains", "flat", "unknown"])
def test_full_batch_closes_without_waiting(times: dict[int, float]) -> None:
    batcher = profiled(times) if times else Batcher()
    fill(batcher, *(request(number) for number in range(4)), following=9, company=9)
    assert len(run(batcher)) == (1 if times is FLAT else 4)


def test_next_image_is_waited_for_where_it_is_on_its_way_and_the_device_gains() -> None:
    batcher = profiled()
    fill(batcher, *(request(number, arrived=number / 1e4) for number in range(3)), following=1)
    assert run(batcher, 0.001) == []
    assert batcher.next(0.001).again == pytest.approx(0.010)  # the queue delay of the first
    assert run(batcher, 0.0101) == [0, 1, 2]


def test_nothing_is_waited_for_where_the_device_gains_nothing() -> None:
    batcher = profiled(FLAT)
    fill(batcher, request(1), following=1, company=9)
    assert run(batcher) == [1]


def test_little_is_waited_for_before_anything_is_known_of_the_device() -> None:
    """A batch costs something around it in any case: a gap of 0.1 ms is less than that, one of a millisecond is not."""
    for gap, waits in ((0.0001, True), (0.001, False)):
        batcher = Batcher()
        fill(batcher, request(1), request(2, arrived=gap), company=9)
        assert (run(batcher, gap) == []) == waits


def test_wait_ends_as_soon_as_nothing_more_comes() -> None:
    batcher = profiled()
    fill(batcher, request(1), request(2, arrived=0.001), following=1)
    assert run(batcher, 0.001) == []
    batcher.expect("model", "front end", 0, 1, 0.001)
    assert run(batcher, 0.001) == [1, 2]


def test_what_another_front_end_expects_counts_too() -> None:
    batcher = profiled()
    batcher.expect("model", "second", 2, 1, 0.0)
    fill(batcher, request(1), request(2, arrived=0.001), following=0)
    assert run(batcher, 0.001) == []
    batcher.forget("second")
    assert run(batcher, 0.001) == [1, 2]


def test_what_is_on_its_way_to_another_model_is_not_waited_for() -> None:
    batcher = profiled()
    batcher.expect("other", "front end", 5, 5, 0.0)
    fill(batcher, request(1), following=0)
    assert run(batcher) == [1]


def test_overlapping_callers_are_waited_for_at_their_pace() -> None:
    batcher = profiled()
    for turn in range(3):
        fill(batcher, request(turn, arrived=turn / 1000), company=2)
    assert run(batcher, 0.002) == []
    assert batcher.next(0.002).again == pytest.approx(0.004)  # two gaps of a millisecond behind the last arrival
    assert run(batcher, 0.0041) == [0, 1, 2]


def test_callers_who_come_too_slowly_are_not_waited_for() -> None:
    """A gap of 6 ms costs the device more than the 5 ms that one more image in the batch saves, and what is around."""
    batcher = profiled()
    for turn in range(2):
        fill(batcher, request(turn, arrived=turn * 0.006), company=2)
    assert run(batcher, 0.006) == [0, 1]


def test_callers_that_keep_coming_are_not_waited_for_beyond_the_queue_delay() -> None:
    batcher = profiled(limits=LARGE)
    for turn in range(10):
        fill(batcher, request(turn, arrived=turn / 1000), limits=LARGE, company=9)
    assert batcher.next(0.009).again == pytest.approx(0.010)
    fill(batcher, request(10, arrived=0.0099), limits=LARGE, company=9)
    assert len(run(batcher, 0.010)) == 11


def test_overlap_of_the_past_is_forgotten() -> None:
    batcher = profiled()
    fill(batcher, request(1), request(2, arrived=0.001), company=2)
    assert run(batcher, 1.0) == [1, 2]
    fill(batcher, request(4, arrived=0.200), company=1)
    assert run(batcher, 0.200) == [4]


def test_pace_is_learnt_anew_after_a_pause() -> None:
    limits = replace(LARGE, max_queue_delay=1.0)
    batcher = profiled(limits=limits)
    fill(batcher, request("before"), limits=limits, company=2)
    assert run(batcher, 5.0) == ["before"]
    for turn in range(3):
        fill(batcher, request(turn, arrived=9 + turn / 1000), limits=limits, company=2)
    # Two gaps of a millisecond behind the last arrival: the nine seconds of silence are no gap.
    assert run(batcher, 9.002) == []
    assert batcher.next(9.002).again == pytest.approx(9.004)


def test_first_after_a_pause_is_not_held_for_as_long_as_the_pause() -> None:
    batcher = profiled()
    fill(batcher, request("before"), company=2)
    assert run(batcher, 5.0) == ["before"]
    fill(batcher, request("after", arrived=5.0), company=2)
    assert run(batcher, 5.0) == ["after"]


def test_batch_closes_early_enough_for_a_deadline() -> None:
    batcher = profiled()
    fill(batcher, request(1, arrived=0.0), request(2, arrived=0.0001, deadline=0.012), following=1)
    # 12 ms less the 8 ms that a batch of three takes, had the third come.
    assert batcher.next(0.001).again == pytest.approx(0.004)
    assert run(batcher, 0.0041) == [2, 1]


def test_run_times_of_another_shape_are_not_used() -> None:
    batcher = Batcher()
    batcher.measured(WIDE, LIMITS, GAINS)
    fill(batcher, request(1), request(2, arrived=0.001), company=9)
    assert run(batcher, 0.001) == [1, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_busy_device_gets_nothing(policy: PolicyName) -> None:
    limits = replace(LIMITS, policy=policy, max_queue_delay=0.0)
    batcher = profiled(limits=limits)
    batch = busy(batcher, limits=limits)
    fill(batcher, *(request(number) for number in range(9)), limits=limits)
    assert run(batcher) == []
    batcher.ended(batch, [(1, 0.006)])
    assert run(batcher) != []


def test_several_batches_run_at_once_where_there_are_lanes_for_them() -> None:
    batcher = profiled(FLAT, lanes=2)
    fill(batcher, *(request(number) for number in range(3)))
    first, second = batcher.next(0.0).batch, batcher.next(0.0).batch
    assert first is not None
    assert second is not None
    assert batcher.next(0.0).batch is None
    batcher.ended(first, [])
    assert run(batcher) == [2]


def test_model_runs_as_many_batches_at_once_as_it_has_instances() -> None:
    limits = replace(LIMITS, instances=3)
    batcher = profiled(FLAT, limits)
    fill(batcher, *(request(number) for number in range(5)), limits=limits)
    batches = [batcher.next(0.0).batch for _ in range(4)]
    assert [batch is not None for batch in batches] == [True, True, True, False]
    assert batches[1] is not None
    batcher.ended(batches[1], [])
    assert [batcher.next(0.0).batch is not None for _ in range(2)] == [True, False]


def test_model_whose_only_session_uses_every_core_runs_alone() -> None:
    two, one = replace(LIMITS, instances=2), LIMITS
    batcher = Batcher()
    for key, limits in ((KEY, two), (OTHER, one)):
        batcher.measured(key, limits, FLAT)
    fill(batcher, request("first"), limits=two)
    running = batcher.next(0.0).batch
    assert running is not None
    fill(batcher, request("alone", deadline=0.05), key=OTHER, limits=one)
    fill(batcher, request("late comer", deadline=5.0), limits=two)
    assert run(batcher) == []  # the one that is due first waits for both halves, and nobody slips in before it
    batcher.ended(running, [])
    alone = batcher.next(0.0).batch
    assert alone is not None
    assert [each.id for each in alone.requests] == ["alone"]
    assert run(batcher) == []
    batcher.ended(alone, [])
    assert run(batcher) == ["late comer"]


def test_admission_counts_on_every_instance() -> None:
    """Images of 6 ms each, which have 18.5 ms: of two instances, each is reckoned to be half of the device."""
    for instances, admitted in ((1, 3), (2, 5)):
        limits = replace(LIMITS, max_batch_size=1, instances=instances)
        batcher = profiled(FLAT, limits)
        with suppress(PredictedLate):
            for number in range(10):
                fill(batcher, request(number, deadline=0.0185), limits=limits)
        assert len(batcher) == admitted


# What goes into it


def test_batch_takes_what_is_due_first() -> None:
    batcher = profiled()
    batch = busy(batcher)
    deadlines = [0.9, 0.5, 0.7, 0.6, 0.8, 0.4]
    fill(batcher, *(request(number, deadline=deadline) for number, deadline in enumerate(deadlines)))
    batcher.ended(batch, [])
    assert [run(batcher), run(batcher)] == [[5, 1, 3, 2], [4, 0]]


def test_request_without_a_deadline_is_due_one_objective_after_it_came() -> None:
    batcher = profiled()
    batch = busy(batcher)
    fill(batcher, request("none"), request("later", deadline=0.2), request("sooner", deadline=0.05))
    batcher.ended(batch, [])
    assert run(batcher) == ["sooner", "none", "later"]  # the objective is 0.1 s


def test_request_without_a_deadline_runs_however_late_it_has_become() -> None:
    batcher = profiled()
    fill(batcher, request(1))
    assert late(Batcher(), 99.0) == []
    assert run(batcher, 99.0) == [1]


def test_low_priority_comes_behind_the_others_but_not_for_ever() -> None:
    limits = replace(LIMITS, max_batch_size=1)
    batcher = profiled(limits=limits)
    fill(batcher, request("patient", low_priority=True), request("first", arrived=0.001), limits=limits)
    ran = [*run(batcher, 0.001)]
    turns = 0
    while "patient" not in ran:
        turns += 1
        now = 0.006 * turns
        fill(batcher, request(turns, arrived=now), limits=limits)
        ran += run(batcher, now)
    assert ran[0] == "first"
    assert 0.9 < now < 1.2  # ten objectives, though the device was asked for more than it can do all the time


def test_largest_batch_leaves_time_for_those_who_come_while_it_runs() -> None:
    """Objective 100 ms: of 45 images at most, in 50 ms; 99.5 % of their throughput are enough."""
    batcher = profiled(limits=LARGE)
    fill(batcher, *(request(number) for number in range(64)), limits=LARGE)
    size = len(run(batcher))
    assert size <= 45
    assert size / (0.005 + 0.001 * size) >= 0.995 * 45 / 0.050


def test_batch_that_would_end_behind_the_first_deadline_becomes_smaller() -> None:
    batcher = profiled(limits=LARGE)
    batch = busy(batcher, limits=LARGE, now=-1.0)
    fill(batcher, request("tight", deadline=0.035), *(request(n, deadline=1.0) for n in range(19)), limits=LARGE)
    batcher.ended(batch, [])
    assert len(run(batcher, 0.015)) == 15  # 5 ms and 1 ms each
    assert len(run(batcher, 0.035)) == 5


def test_few_requests_do_not_make_the_batch_of_many_small() -> None:
    """After a stall two images could still be answered, alone: then 18 others would wait for nothing."""
    batcher = profiled(limits=LARGE)
    batch = busy(batcher, limits=LARGE, now=-1.0)
    fill(batcher, *(request(("tight", n), deadline=0.035) for n in range(2)), limits=LARGE)
    fill(batcher, *(request(n, deadline=0.09) for n in range(18)), limits=LARGE)
    batcher.ended(batch, [])
    decision = batcher.next(0.0279)
    assert [each.id for each in decision.late] == [("tight", 0), ("tight", 1)]
    assert decision.batch is not None
    assert decision.batch.rows == 18


@pytest.mark.parametrize("other", [OTHER, WIDE, Key("model", 2, KEY.shape)])
def test_batch_holds_one_model_version_and_shape(other: Key) -> None:
    batcher = Batcher()
    fill(batcher, request(1))
    fill(batcher, request(2, arrived=0.001), key=other)
    batches = []
    for _ in range(2):
        batch = batcher.next(0.001).batch
        assert batch is not None
        batches.append((batch.key, [each.id for each in batch.requests]))
        batcher.ended(batch, [])
    assert batches == [(KEY, [1]), (other, [2])]


def test_several_rows_never_make_a_batch_too_large() -> None:
    batcher = profiled()
    batch = busy(batcher)
    fill(batcher, request(1, rows=2), request(2, rows=1), request(3, rows=3), request(4, rows=1))
    batcher.ended(batch, [])
    assert [run(batcher), run(batcher)] == [[1, 2], [3, 4]]


def test_request_larger_than_a_batch_runs_alone() -> None:
    batcher = profiled()
    batch = busy(batcher)
    fill(batcher, request(1), request(2, rows=9), request(3))
    batcher.ended(batch, [])
    assert [run(batcher) for _ in range(3)] == [[1], [2], [3]]


# Between queues


def test_device_goes_to_the_queue_that_has_to_start_first() -> None:
    batcher = profiled()
    batcher.measured(OTHER, LIMITS, {1: 0.050, 4: 0.200})
    batch = busy(batcher)
    fill(batcher, request("short", deadline=0.100), key=KEY)
    fill(batcher, request("long", deadline=0.120), key=OTHER)  # due later, but it takes 50 ms
    batcher.ended(batch, [])
    assert [run(batcher, 0.010), run(batcher, 0.060)] == [["long"], ["short"]]


def test_full_batches_of_one_model_do_not_starve_another() -> None:
    batcher = profiled()
    fill(batcher, request("patient"), key=OTHER)
    ran: list[Hashable] = []
    for turn in range(200):
        now = 0.009 * turn
        fill(batcher, *(request((turn, number), arrived=now) for number in range(4)), key=KEY)
        ran += run(batcher, now)
        if "patient" in ran:
            break
    assert "patient" in ran
    assert now <= 0.1


def test_queue_that_still_waits_does_not_hold_back_one_that_is_ready() -> None:
    batcher = profiled()
    fill(batcher, request("waits"), request("waits, too", arrived=0.001), key=OTHER, following=1)
    fill(batcher, request("ready", arrived=0.002), key=KEY)
    assert run(batcher, 0.002) == ["ready"]
    assert run(batcher, 0.002) == []


def test_queue_that_still_waits_runs_before_one_that_would_make_it_late() -> None:
    batcher = profiled()
    batcher.measured(KEY, LIMITS, {1: 0.050})
    fill(batcher, request("tight", deadline=0.020), request(2, arrived=0.001, deadline=0.02), key=OTHER, following=1)
    fill(batcher, request("long", arrived=0.002), key=KEY)
    assert run(batcher, 0.002) == ["tight", 2]


def test_device_is_asked_again_when_the_first_batch_closes() -> None:
    batcher = profiled()
    fill(batcher, request(1, arrived=0.004), request(2, arrived=0.0041), key=KEY, following=1)
    fill(batcher, request(3, arrived=0.001), request(4, arrived=0.0011), key=OTHER, following=1)
    assert batcher.next(0.005).again == pytest.approx(0.011)


# Deadlines


def test_expired_requests_leave_their_queue_and_never_run() -> None:
    batcher = Batcher()
    batch = busy(batcher)
    fill(batcher, request(1, deadline=0.001), request(2), request(3, deadline=0.002), request(4, deadline=0.003))
    assert sorted(map(str, late(batcher, 0.002))) == ["1", "3"]
    assert late(batcher, 0.002) == []
    batcher.ended(batch, [])
    assert run(batcher, 0.0025) == [4, 2]
    assert len(batcher) == 0


def test_busy_device_is_asked_again_when_the_first_deadline_passes() -> None:
    batcher = Batcher()
    busy(batcher)
    fill(batcher, request(1, deadline=0.5), request(2, deadline=0.2))
    assert batcher.next(0.0).again == 0.2


def test_deadline_that_is_now_has_passed() -> None:
    batcher = Batcher()
    busy(batcher)
    fill(batcher, request(1, deadline=0.5))
    assert late(batcher, math.nextafter(0.5, 0)) == []
    assert late(batcher, 0.5) == [1]
    assert batcher.waiting("model") == 0


def test_work_that_would_end_too_late_never_starts() -> None:
    batcher = profiled()
    batch = busy(batcher)
    fill(batcher, request(1, deadline=0.020), request(2, deadline=0.100))
    batcher.ended(batch, [])
    decision = batcher.next(0.0141)  # one image takes 6 ms
    assert [each.id for each in decision.late] == [1]
    assert decision.batch is not None
    assert [each.id for each in decision.batch.requests] == [2]


# Refusal


def test_request_that_would_be_late_is_refused_when_it_comes() -> None:
    batcher = profiled()
    with pytest.raises(PredictedLate, match=r"'model' would answer 2\.0 ms after the deadline") as refused:
        fill(batcher, request(1, deadline=0.004))  # one image takes 6 ms
    assert refused.value.retry_after == pytest.approx(0.01)
    assert len(batcher) == 0
    fill(batcher, request(2, deadline=0.0061))
    assert run(batcher) == [2]


def test_batch_under_way_counts() -> None:
    batcher = profiled()
    busy(batcher)  # until 6 ms; then at most a batch of four, 9 ms
    with pytest.raises(PredictedLate):
        fill(batcher, request(1, deadline=0.0149))
    fill(batcher, request(1, deadline=0.0151))


def test_batches_ahead_count() -> None:
    batcher = profiled()
    busy(batcher)
    fill(batcher, *(request(number, deadline=0.03) for number in range(8)))  # until 24 ms
    with pytest.raises(PredictedLate):
        fill(batcher, request("late", deadline=0.0329))
    fill(batcher, request("in time", deadline=0.0331))


def test_work_of_other_queues_that_is_due_before_counts() -> None:
    batcher = profiled()
    busy(batcher)
    fill(batcher, *(request(number, deadline=0.03) for number in range(8)), key=OTHER)  # two batches of 9 ms
    with pytest.raises(PredictedLate):
        fill(batcher, request(1, deadline=0.0329))  # behind them
    fill(batcher, request(1, deadline=0.0331))
    fill(batcher, request(2, deadline=0.016))  # before them


def test_nobody_pushes_in_where_that_would_make_another_late() -> None:
    batcher = profiled(limits=replace(LIMITS, max_batch_size=1))
    limits = replace(LIMITS, max_batch_size=1)
    busy(batcher, limits=limits)
    fill(batcher, *(request(number, deadline=0.0301) for number in range(4)), limits=limits)  # until 30 ms
    with pytest.raises(PredictedLate):
        fill(batcher, request("pushes", deadline=0.020), limits=limits)
    fill(batcher, request("behind", deadline=0.0361), limits=limits)


def test_nothing_is_refused_while_nothing_is_known_of_the_device() -> None:
    batcher = Batcher()
    fill(batcher, request(1, deadline=1e-9))
    assert len(batcher) == 1


def sized(*known: Key) -> Batcher:
    """A batcher that tells shapes by their pixels, and knows what batches of some take."""
    batcher = Batcher(volume=lambda shape: shape[0][0] * shape[0][1])  # type: ignore[index]
    for key in known:
        batcher.measured(key, LIMITS, {1: 0.006, 2: 0.007, 4: 0.009})
    return batcher


def test_shape_that_never_ran_is_refused_by_what_others_take_in_proportion() -> None:
    batcher = sized(KEY)
    busy(batcher)  # until 6 ms; then at most a batch of four of four times the pixels, 36 ms
    with pytest.raises(PredictedLate):
        fill(batcher, request(1, deadline=0.0419), key=WIDE)
    fill(batcher, request(1, deadline=0.0421), key=WIDE)


def test_nearest_shape_decides_and_other_models_and_versions_do_not() -> None:
    batcher = sized()
    newer, other, tall = Key("model", 2, WIDE.shape), Key("other", 1, WIDE.shape), Key("model", 1, ((64, 48, 1),))
    for key, seconds in ((KEY, 0.001), (WIDE, 0.080), (newer, 0.3), (other, 0.3)):
        batcher.measured(key, LIMITS, {1: seconds})
    fill(batcher, request(1, deadline=1.0), key=tall)
    batch = batcher.next(0.0).batch
    assert batch is not None
    assert batch.ends == pytest.approx(0.060)


def test_guess_alone_never_keeps_a_shape_from_being_tried() -> None:
    """Else one that is too high would stand for ever: one request at a time is tried, and what it takes is known."""
    batcher = sized(KEY)
    fill(batcher, request(1, deadline=0.020), key=WIDE)  # the guess says 24 ms
    with pytest.raises(PredictedLate):
        fill(batcher, request(2, deadline=0.020), key=WIDE)
    with pytest.raises(PredictedLate):
        fill(batcher, request(3, deadline=0.020), key=Key("model", 1, ((64, 65, 1),)))
    batch = batcher.next(0.001).batch
    assert batch is not None
    with pytest.raises(PredictedLate):  # that one has not ended
        fill(batcher, request(4, 0.001, deadline=0.020), key=WIDE)
    batcher.ended(batch, [(1, 0.008)])
    fill(batcher, request(5, 0.010, deadline=0.020), key=WIDE)
    assert run(batcher, 0.010, seconds=0.008) == [5]
    with pytest.raises(PredictedLate):  # measured now
        fill(batcher, request(6, 0.020, deadline=0.0279), key=WIDE)
    fill(batcher, request(7, 0.020, deadline=0.0281), key=WIDE)


def test_first_batch_of_a_model_is_a_guess_for_its_other_shapes() -> None:
    batcher = sized()
    fill(batcher, request(1, deadline=1.0))
    assert run(batcher, seconds=0.010) == [1]
    fill(batcher, request(2, 1.0, deadline=1.050), key=WIDE)
    with pytest.raises(PredictedLate):  # 40 ms in a batch of one, and there is nothing yet that says two take less
        fill(batcher, request(3, 1.0, deadline=1.030), key=WIDE)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_admitted_on_a_guess_runs(policy: PolicyName) -> None:
    limits = replace(LIMITS, policy=policy)
    batcher = sized(KEY)
    fill(batcher, request(1, deadline=0.020), key=WIDE, limits=limits)
    assert run(batcher, 0.019) == [1]  # though it ends behind its deadline, if the guess holds


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "deferred"])
def test_other_policies_refuse_nobody(policy: PolicyName) -> None:
    limits = replace(LIMITS, policy=policy)
    batcher = profiled(limits=limits)
    fill(batcher, request(1, deadline=1e-9), limits=limits)
    assert len(batcher) == 1


def test_full_queue_refuses_with_the_time_until_there_is_room() -> None:
    limits = replace(LIMITS, max_queue=8, objective=2.0)
    batcher = profiled({4: 0.5}, limits)
    fill(batcher, *(request(number) for number in range(8)), limits=limits)
    with pytest.raises(QueueFull, match="'model' has 8 images, want at most 8") as full:
        fill(batcher, request(8), limits=limits)
    assert full.value.retry_after == pytest.approx(1.0)  # two batches of half a second
    assert batcher.waiting("model") == len(batcher) == 8
    assert batcher.cancel(("front end", 8)) is None
    run(batcher)
    fill(batcher, request(9), limits=limits)


@pytest.mark.parametrize("time", [None, 1e-9, 1e9])
def test_hint_is_neither_nothing_nor_for_ever(time: float | None) -> None:
    limits = replace(LIMITS, max_queue=4)
    batcher = Batcher() if time is None else profiled({4: time}, limits)
    fill(batcher, request(1, rows=4), limits=limits)
    with pytest.raises(QueueFull) as full:
        fill(batcher, request(2), limits=limits)
    assert full.value.retry_after is not None
    assert 0.01 <= full.value.retry_after <= 10


def test_queue_is_counted_in_images_over_all_shapes_of_a_model() -> None:
    batcher = Batcher()
    limits = replace(LIMITS, max_queue=8)
    fill(batcher, request(1, rows=3), limits=limits)
    fill(batcher, request(2, rows=4), key=WIDE, limits=limits)
    with pytest.raises(QueueFull):
        fill(batcher, request(3, rows=2), limits=limits)
    fill(batcher, request(4, rows=1), limits=limits)
    fill(batcher, request(5, rows=8), key=OTHER, limits=limits)  # another model has a queue of its own


def test_request_larger_than_the_whole_queue_waits_alone() -> None:
    batcher = Batcher()
    limits = replace(LIMITS, max_batch_size=32, max_queue=4)
    fill(batcher, request(1, rows=8), limits=limits)
    with pytest.raises(QueueFull, match="has 8 images, want at most 4"):
        fill(batcher, request(2), limits=limits)
    assert run(batcher) == [1]
    fill(batcher, request(3), limits=limits)
    with pytest.raises(QueueFull, match="has 1 images"):  # it does not push in where others wait
        fill(batcher, request(4, rows=8), limits=limits)


# Those who leave


def test_cancel_takes_out_exactly_one() -> None:
    batcher = Batcher()
    fill(batcher, request(1), request(2, rows=2), request(3, deadline=0.05))
    cancelled = batcher.cancel(("front end", 2))
    assert cancelled is not None
    assert cancelled.model == "model of 2"
    assert batcher.waiting("model") == 2
    assert batcher.cancel(("front end", 2)) is None
    assert batcher.cancel(("front end", "never came")) is None
    assert run(batcher) == [3, 1]


def test_running_request_cannot_be_cancelled() -> None:
    batcher = Batcher()
    fill(batcher, request(1))
    assert run(batcher) == [1]
    assert batcher.cancel(("front end", 1)) is None


def test_what_a_lost_front_end_sent_is_not_run() -> None:
    batcher = Batcher()
    fill(batcher, request(1, source="lost", rows=2), request(2, source="kept"))
    fill(batcher, request(3, source="lost", deadline=1.0), key=WIDE)
    assert sorted(str(each.id) for each in batcher.forget("lost")) == ["1", "3"]
    assert batcher.waiting("model") == len(batcher) == 1
    assert run(batcher) == [2]
    assert run(batcher) == []
    assert batcher.forget("unheard of") == []


def test_version_that_is_dropped_leaves_no_times_and_takes_nobodys_requests_along() -> None:
    batcher = profiled()
    newer = KEY._replace(version=2)
    batcher.measured(newer, LIMITS, GAINS)
    fill(batcher, request(1), key=WIDE)
    batcher.drop("model", 1)
    assert not batcher.times(KEY)
    assert batcher.times(newer)
    assert batcher.times(OTHER)
    assert run(batcher) == [1]  # it waited: what becomes of it is decided when its turn comes
    batcher.drop("model", 1)
    assert not batcher.times(WIDE)


class Caller:
    """An id whose end can be seen: nothing remembers a caller whom the batcher has forgotten."""


def test_callers_who_cancel_are_not_remembered_until_their_deadlines() -> None:
    batcher = Batcher()
    callers: weakref.WeakSet[Caller] = weakref.WeakSet()

    def add(deadline: float) -> Caller:
        caller = Caller()
        callers.add(caller)
        batcher.add(KEY, Request(caller, "front end", 1, 0.0, deadline), LIMITS, 0.0)
        return caller

    add(deadline=1.0)  # waits all the time, so that its queue is never empty, with the nearest deadline
    for _ in range(5000):
        batcher.cancel(("front end", add(deadline=3600.0)))
    assert len(batcher) == 1
    assert 1 <= len(callers) < 100


def test_shapes_long_not_in_use_are_forgotten() -> None:
    """Clients may send any number of sizes: what is known of one that is in use stays."""
    batcher = profiled()
    for side in range(3000):
        fill(batcher, request(("new", side), arrived=side), key=Key("model", 1, (side, side)))
        run(batcher, side, seconds=0.001)
        fill(batcher, request(("old", side), arrived=side), key=KEY)
        run(batcher, side)
    with pytest.raises(PredictedLate):
        fill(batcher, request("known", arrived=9999, deadline=9999.004))
    fill(batcher, request("forgotten", arrived=9999, deadline=9999 + 1e-9), key=Key("model", 1, (0, 0)))


def test_changed_limits_hold_from_the_next_request_on() -> None:
    batcher = profiled()
    batch = busy(batcher)
    limits = replace(LIMITS, max_batch_size=2)
    fill(batcher, *(request(number) for number in range(4)))
    fill(batcher, request(4), limits=limits)
    batcher.ended(batch, [])
    assert [len(run(batcher)) for _ in range(3)] == [2, 2, 1]


# The policies to compare with


def test_timeout_waits_for_company_whether_or_not_any_comes() -> None:
    limits = replace(LIMITS, policy="timeout")
    batcher = profiled(limits=limits)
    fill(batcher, request(1), limits=limits)
    assert run(batcher, 0.009) == []
    assert run(batcher, 0.010) == [1]
    fill(batcher, *(request(number, arrived=1.0) for number in range(4)), limits=limits)
    assert len(run(batcher, 1.0)) == 4


def test_eager_takes_what_is_there() -> None:
    limits = replace(LIMITS, policy="eager")
    batcher = profiled(limits=limits)
    fill(batcher, request(1), request(2), limits=limits, following=9, company=9)
    assert run(batcher) == [1, 2]


def test_aimd_grows_by_one_and_shrinks_by_a_tenth() -> None:
    limits = replace(LARGE, policy="aimd")
    batcher = profiled({1: 0.01, 64: 0.32}, limits)  # 0.1 s, the objective, are about 18 images
    sizes = []
    for turn in range(40):
        fill(batcher, *(request((turn, number), arrived=float(turn)) for number in range(64)), limits=limits)
        sizes.append(len(run(batcher, float(turn))))
        batcher.forget("front end")
    assert sizes[:5] == [1, 2, 3, 4, 5]
    assert max(sizes) <= 22
    assert any(second < first for first, second in pairwise(sizes))


def test_nexus_gives_up_what_is_too_late_for_a_full_batch() -> None:
    limits = replace(LARGE, policy="nexus")
    batcher = profiled(limits=limits)
    fill(batcher, request("tight", deadline=0.010), *(request(n, deadline=0.1) for n in range(9)), limits=limits)
    decision = batcher.next(0.0)
    assert [each.id for each in decision.late] == ["tight"]
    assert decision.batch is not None
    assert decision.batch.rows == 9


# All of it together

ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([KEY, WIDE, OTHER]),
        st.integers(1, 6),  # rows
        st.floats(0, 0.01),  # seconds since the arrival before
        st.one_of(st.none(), st.floats(0, 0.05)),  # seconds until the deadline
        st.booleans(),  # of low priority
        st.integers(0, 2),  # on their way
        st.integers(1, 3),  # under way
    ),
    max_size=40,
)


@given(ARRIVALS, st.sampled_from(POLICIES), st.sampled_from([{}, GAINS, FLAT]))
def test_idle_device_never_waits_longer_than_the_queue_delay_or_starts_late_work(
    arrivals: list[tuple[Key, int, float, float | None, bool, int, int]],
    policy: PolicyName,
    times: dict[int, float],
) -> None:
    limits = replace(LIMITS, policy=policy)
    batcher = profiled(times, limits) if times else Batcher()
    now = 0.0
    waiting: dict[Hashable, Request] = {}
    for number, (key, rows, gap, span, low, following, company) in enumerate(arrivals):
        now += gap
        one = request(number, now, rows, math.inf if span is None else now + span, low_priority=low)
        try:
            fill(batcher, one, key=key, limits=limits, following=following, company=company)
            waiting[number] = one
        except PredictedLate:
            assert policy == "deferred"
        while True:
            decision = batcher.next(now)
            for gone in decision.late:
                assert gone.deadline < math.inf
                del waiting[gone.id]
            if decision.batch is None:
                break
            assert decision.batch.rows <= limits.max_batch_size or len(decision.batch.requests) == 1
            for each in decision.batch.requests:
                assert each.deadline > now
                if policy == "deferred":
                    assert each.deadline >= decision.batch.ends - 1e-9
                del waiting[each.id]
            batcher.ended(decision.batch, [])
        assert len(batcher) == len(waiting)
        if waiting:
            assert now < decision.again
            assert decision.again <= max(each.arrived for each in waiting.values()) + limits.max_queue_delay
            assert decision.again <= min(each.deadline for each in waiting.values())
        else:
            assert decision.again == math.inf


class World:
    """Front ends, a batcher and a device on a virtual clock. Counts how every request ended."""

    KEYS = (KEY, WIDE, OTHER, Key("model", 2, KEY.shape))
    LIMITS = Limits(max_batch_size=16, max_queue_delay=0.004, max_queue=64)

    def __init__(
        self, seed: int, requests: int, load: float, policy: PolicyName = "deferred", lanes: int = 1, instances: int = 1
    ) -> None:
        self._random = random.Random(seed)
        self._requests = requests
        self._gap = 0.0006 / load / lanes  # seconds between arrivals; a full batch of 16 takes 9.4 ms
        self._limits = replace(self.LIMITS, policy=policy)
        self._instances = {"model": 1, "other": instances}
        self._busy: Counter[str] = Counter()
        self._lanes = lanes
        self._batcher = Batcher(lanes)
        self.alive: dict[Hashable, tuple[Key, Request]] = {}
        self.ended: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.longest_wait = 0.0

    def run(self) -> None:
        events: list[tuple[float, int, Batch | str]] = [(0.0, 0, "arrival")]
        arrived = 0
        turns = 0
        while events:
            now, _, event = heapq.heappop(events)
            turns += 1
            if isinstance(event, Batch):
                self._busy[event.key.model] -= 1
                self._batcher.ended(event, [(event.rows, self._seconds(event.rows))])
            elif event == "arrival":
                self._arrive(arrived, now)
                arrived += 1
                if arrived < self._requests:
                    heapq.heappush(events, (now + self._random.expovariate(1 / self._gap), turns, "arrival"))
                else:
                    for source in range(3):
                        for model in ("model", "other"):
                            self._batcher.expect(model, source, 0, 0, now)
            while True:
                decision = self._batcher.next(now)
                for gone in decision.late:
                    assert gone.deadline < math.inf
                    self._end(gone, "late")
                if decision.batch is None:
                    break
                self._take(decision.batch, now)
                turns += 1
                heapq.heappush(events, (now + self._seconds(decision.batch.rows), turns, decision.batch))
            if decision.again < math.inf:
                assert decision.again > now, "the batcher asks to be asked again at once"
                turns += 1
                heapq.heappush(events, (decision.again, turns, "timer"))
            if turns % 1000 == 0:
                self.check_counters()

    def check_counters(self) -> None:
        rows: Counter[str] = Counter()
        for key, one in self.alive.values():
            rows[key.model] += one.rows
        assert {model: self._batcher.waiting(model) for model in ("model", "other")} == {
            model: rows[model] for model in ("model", "other")
        }
        assert len(self._batcher) == len(self.alive)

    def _seconds(self, rows: int) -> float:
        return 0.003 + 0.0004 * rows

    def _arrive(self, number: int, now: float) -> None:
        choose = self._random
        key = choose.choices(self.KEYS, (8, 2, 2, 1))[0]
        deadline = now + choose.expovariate(1 / 0.05) if choose.random() < 0.5 else math.inf
        source = choose.randrange(3)
        rows = choose.choice((1, 1, 1, 2, 5, 16, 20))
        one = Request(number, source, rows, now, deadline, low_priority=choose.random() < 0.1)
        self._batcher.expect(key.model, source, choose.choice((0, 0, 1, 3)), choose.choice((1, 1, 2, 9)), now)
        try:
            limits = replace(self._limits, instances=self._instances[key.model])
            self._batcher.add(key, one, limits, now)
            self.alive[number] = (key, one)
        except ConvoyError as error:
            self.ended[error.reason] += 1
        if choose.random() < 0.05:
            self._cancel(choose.randrange(max(0, number - 50), number + 1))

    def _cancel(self, number: int) -> None:
        source = self.alive[number][1].source if number in self.alive else 0
        gone = self._batcher.cancel((source, number))
        assert (gone is not None) == (number in self.alive)
        if gone is not None:
            self._end(gone, "cancelled")

    def _take(self, batch: Batch, now: float) -> None:
        assert batch.requests
        self._busy[batch.key.model] += 1
        shares = sum(busy / self._instances[model] for model, busy in self._busy.items())
        assert shares <= self._lanes + 1e-9
        assert batch.rows <= self._limits.max_batch_size or len(batch.requests) == 1
        self.sizes.append(batch.rows)
        for one in batch.requests:
            assert one.deadline > now
            assert self.alive[one.id] == (batch.key, one)
            self.longest_wait = max(self.longest_wait, now - one.arrived)
            self._end(one, "ran")

    def _end(self, one: Request, how: str) -> None:
        del self.alive[one.id]  # KeyError: it ended twice
        self.ended[how] += 1


@pytest.fixture(scope="module", params=[0.2, 1.0, 3.0], ids=lambda load: f"load {load}")
def world(request: pytest.FixtureRequest) -> World:
    made = World(seed=7, requests=8_000, load=request.param)
    made.run()
    return made


@pytest.mark.simulation
def test_every_request_ends_exactly_once(world: World) -> None:
    world.check_counters()
    assert not world.alive
    assert sum(world.ended.values()) == 8_000
    assert all(world.ended[how] > 0 for how in ("ran", "cancelled", "PREDICTED_LATE"))


@pytest.mark.simulation
def test_wait_is_bounded_by_the_queue_whatever_the_load(world: World) -> None:
    # At most 64 images of each of two models, at worst one by one; those of low priority wait ten objectives more.
    assert world.longest_wait < 1.0 + 2 * 64 * 0.0034


@pytest.mark.simulation
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("lanes", "instances"), [(1, 1), (3, 1), (1, 3)])
def test_every_request_ends_exactly_once_under_every_policy(policy: PolicyName, lanes: int, instances: int) -> None:
    made = World(seed=5, requests=4_000, load=1.2, policy=policy, lanes=lanes, instances=instances)
    made.run()
    made.check_counters()
    assert not made.alive
    assert sum(made.ended.values()) == 4_000


@pytest.mark.simulation
def test_overload_fills_batches_and_refuses_the_rest() -> None:
    calm, crowded = (World(seed=3, requests=3000, load=load) for load in (0.05, 5.0))
    calm.run()
    crowded.run()
    assert calm.ended["QUEUE_FULL"] == 0
    assert crowded.ended["QUEUE_FULL"] + crowded.ended["PREDICTED_LATE"] > 1000
    assert sum(crowded.sizes) / len(crowded.sizes) > 1.3 * sum(calm.sizes) / len(calm.sizes)


def test_suspects_run_one_at_a_time_with_nothing_beside_them() -> None:
    limits = replace(LIMITS, instances=2)
    alone = Key(*KEY[:3], alone=True)
    batcher = Batcher(volume=lambda shape: 1.0)
    batcher.measured(KEY, limits, GAINS)
    for number in range(3):
        batcher.add(alone, request(number), replace(limits, max_batch_size=1, instances=1), 0.0)
    first = batcher.next(0.0).batch
    assert first is not None
    assert len(first.requests) == 1
    assert first.seconds > 0  # known from those that run together
    batcher.add(KEY, request(7), limits, 0.0)
    assert batcher.next(0.0).batch is None
    batcher.ended(first, [])
    following = batcher.next(0.0).batch
    assert following is not None
    assert batcher.next(0.0).batch is None or not following.key.alone


def test_batch_that_outlives_the_memory_of_its_shape_still_frees_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_MOST_QUEUES", 1)
    batcher = Batcher()
    running = busy(batcher)
    fill(batcher, request(1), key=OTHER)  # its queue takes the place of the one whose batch runs
    assert batcher.times(KEY) == {}
    assert not batcher.ended(running, [(1, 0.005)])
    assert run(batcher) == [1]


def test_late_requests_leave_nothing_to_run_under_a_policy_with_a_moving_limit() -> None:
    limits = replace(LIMITS, policy="aimd")
    queue = Queue(KEY, limits)
    queue.put(request(1, deadline=0.5), 0.5, 1)
    late, batch = POLICY_TABLE["aimd"].select(queue, 0.5)
    assert ([each.id for each in late], batch) == ([1], [])


def trying(size: int, batch_size: int, waiting: int, deadline: float = math.inf) -> tuple[Batcher, Queue]:
    """A trial of so many rows is due where batches have another size."""
    limits = replace(LARGE, max_queue_delay=0.0)
    batcher = Batcher()
    batcher.measured(KEY, limits, GAINS)
    fill(batcher, *(request(number, deadline=deadline) for number in range(waiting)), limits=limits)
    queue = batcher._queues[KEY]
    queue.batch_size, queue.trials.size = batch_size, size
    return batcher, queue


def test_trial_runs_its_own_size_once_enough_wait() -> None:
    batcher, queue = trying(size=4, batch_size=2, waiting=5)
    batch = batcher.next(0.0).batch
    assert batch is not None
    assert (batch.rows, batch.trial, queue.trials.size) == (4, True, 0)


def test_trial_for_which_too_few_wait_is_given_up_once_a_usual_batch_has_waited_for_more() -> None:
    batcher, queue = trying(size=4, batch_size=2, waiting=3)
    batch = batcher.next(0.0).batch
    assert batch is not None
    assert (batch.rows, batch.trial, queue.trials.size) == (2, False, 0)
    batcher, queue = trying(size=4, batch_size=2, waiting=1)
    batch = batcher.next(0.0).batch
    assert batch is not None
    assert (batch.trial, queue.trials.size) == (False, 4)  # fewer than usual have not waited for it


def test_trial_that_could_make_a_request_late_is_put_off() -> None:
    longest = 1.5 * 2 * GAINS[2]
    work = 2 * GAINS[2] + GAINS[1]  # of five rows, two by two
    for deadline, runs in ((longest + work + 0.001, True), (longest + work - 0.001, False)):
        batcher, queue = trying(size=4, batch_size=2, waiting=5, deadline=deadline)
        batch = batcher.next(0.0).batch
        assert batch is not None
        assert (batch.trial, queue.trials.size) == ((True, 0) if runs else (False, 4))


def test_work_of_other_queues_runs_on_all_lanes() -> None:
    batcher = profiled(lanes=2)
    # Twenty batches of 9 ms on two lanes, then one image, 6 ms, or with a second one at most a batch of four, 9 ms.
    fill(batcher, *(request(number, deadline=0.095) for number in range(80)), key=OTHER)
    with pytest.raises(PredictedLate):
        fill(batcher, request("late", deadline=0.0959))
    fill(batcher, request("in time", deadline=0.0991))


def test_shape_that_is_forgotten_for_another_has_no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_MOST_QUEUES", 2)
    batcher = Batcher()
    for key in (KEY, OTHER):
        batcher.measured(key, LIMITS, GAINS)
    fill(batcher, request(1), key=KEY)
    fill(batcher, request(2), key=WIDE)
    assert batcher.times(KEY)
    assert not batcher.times(OTHER)
    assert [run(batcher), run(batcher)] == [[1], [2]]


def test_shape_is_learnt_beyond_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_MOST_QUEUES", 1)
    batcher = Batcher()
    for key in (KEY, OTHER, WIDE):
        fill(batcher, request(str(key)), key=key)
    assert len(batcher) == 3
    assert sum(len(run(batcher, 1.0)) for _ in range(3)) == 3


def test_queues_that_have_to_start_at_the_same_time_run_in_the_order_of_their_arrival() -> None:
    batcher = profiled()
    batch = busy(batcher)
    for key in (OTHER, KEY, WIDE):
        fill(batcher, request(key.model + str(key.shape), deadline=0.5), key=key)
    batcher.ended(batch, [])
    assert [run(batcher)[0] for _ in range(3)] == [key.model + str(key.shape) for key in (OTHER, KEY, WIDE)]


def test_run_of_which_nothing_is_known_has_no_limit() -> None:
    batcher = Batcher()
    assert busy(batcher).seconds == 0.0


def test_request_that_ends_exactly_at_its_deadline_is_admitted() -> None:
    batcher = Batcher()
    batcher.measured(KEY, LIMITS, {1: 0.25})
    fill(batcher, request(1, deadline=0.25))
    assert run(batcher) == [1]


def test_busy_device_is_not_asked_again_when_a_batch_closes() -> None:
    batcher = profiled()
    busy(batcher)
    fill(batcher, request(1), request(2, arrived=0.0001), following=1)
    assert batcher.next(0.001).again == math.inf


def test_first_deadline_is_known_whoever_has_left() -> None:
    generator, batcher = random.Random(3), Batcher()
    busy(batcher)
    waiting: dict[int, float] = {}
    for number in range(600):
        waiting[number] = generator.uniform(1, 2)
        fill(batcher, request(number, deadline=waiting[number]), limits=replace(LIMITS, max_queue=1000))
        if number % 4:
            gone = generator.choice(list(waiting))
            del waiting[gone]
            batcher.cancel(("front end", gone))
        assert batcher.next(0.0).again == min(waiting.values())


def test_trial_delays_what_waits_by_its_share_of_the_lanes() -> None:
    work = (2 * GAINS[2] + GAINS[1]) / 2  # of five rows, two by two on two lanes
    for room, runs in ((0.001, True), (-0.001, False)):
        batcher, limits = Batcher(lanes=2), replace(LARGE, max_queue_delay=0.0)
        batcher.measured(KEY, limits, GAINS)
        fill(
            batcher, *(request(number, deadline=1.5 * 2 * GAINS[2] + work + room) for number in range(5)), limits=limits
        )
        queue = batcher._queues[KEY]
        queue.batch_size, queue.trials.size = 2, 4
        batch = batcher.next(0.0).batch
        assert batch is not None
        assert batch.trial == runs
