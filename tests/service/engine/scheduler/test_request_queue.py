"""The order of a queue, its rows, and the size of its batches."""

import math
from dataclasses import replace

import pytest

from convoy.service.config import PolicyName
from convoy.service.engine.scheduler.request_queue import Key, Limits, Queue, due_time
from convoy.service.ipc.channel import Request

LIMITS = Limits(max_batch_size=4, max_queue_delay=0.0, max_queue=100, objective=2.0)
LINEAR = {1: 1.0, 2: 1.25, 4: 1.5}  # seconds of batches by size


def request(number: int, rows: int = 1, deadline: float = math.inf, low_priority: bool = False) -> Request:
    return Request(number, "front end", rows, 0.5, deadline, low_priority)


def queue_of(*rows: int, limits: Limits = LIMITS) -> Queue:
    """A queue of requests of so many rows, due at 1.0, 2.0 and so on."""
    queue = Queue(Key("model", 1, ()), limits)
    for number, each in enumerate(rows):
        queue.put(request(number, each), number + 1.0, number)
    return queue


def ids(requests: list[Request]) -> list[object]:
    return [each.id for each in requests]


def test_request_is_due_at_its_deadline_or_one_objective_after_it_came() -> None:
    assert due_time(request(1, deadline=9.0), 2.0) == 9.0
    assert due_time(request(1), 2.0) == 2.5
    assert due_time(request(1, deadline=9.0, low_priority=True), 2.0) == 29.0
    assert due_time(request(1, low_priority=True), 2.0) == 22.5


def test_empty_queue_is_due_at_no_time() -> None:
    assert queue_of().due == math.inf
    assert queue_of(1, 1).due == 1.0


def test_requests_due_at_the_same_time_keep_their_order() -> None:
    queue = queue_of()
    for number, due in enumerate([3.0, 3.0, 1.0, 3.0, 1.0]):
        queue.put(request(number), due, number)
    assert ids(queue.first(5)) == [2, 4, 0, 1, 3]
    assert ids(queue.first(2)) == [2, 4]
    assert (queue.head.id, queue.last[2].id, len(queue), queue.rows) == (2, 3, 5, 5)


def test_removed_request_takes_its_rows_with_it() -> None:
    queue = queue_of(1, 1)
    place = queue.put(request(7, rows=3), 1.5, 7)
    queue.remove(place)
    assert (ids(queue.first(9)), queue.rows) == ([0, 1], 2)


def test_rows_ahead_are_those_that_are_due_earlier() -> None:
    queue = queue_of(2, 2, 2)
    assert [queue.rows_ahead(due) for due in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 9.0)] == [0, 0, 2, 2, 4, 6, 6]
    assert queue_of().rows_ahead(1.0) == 0


def test_pop_takes_what_fits_and_at_least_one() -> None:
    for rows, limit, popped in (((1, 1, 1), 2, 2), ((1, 1), 0, 1), ((2, 2, 1), 4, 2), ((9, 1), 4, 1), ((1, 9), 4, 1)):
        queue = queue_of(*rows)
        assert len(queue.pop(limit)) == popped
        assert queue.rows == sum(rows[popped:])
        assert len(queue) == len(rows) - popped


def test_budget_follows_the_newest_requests() -> None:
    queue = queue_of()
    assert queue.budget == 2.0
    queue.put(request(1), 4.5, 1)  # four seconds after it came
    assert queue.budget == pytest.approx(2.1)
    queue.put(request(2), 0.5, 2)
    assert queue.budget == pytest.approx(1.995)


def test_batch_takes_at_most_half_of_the_time_that_requests_have() -> None:
    queue = queue_of()
    for budget, size in ((3.0, 4), (2.75, 3), (2.5, 2), (0.5, 1)):
        queue.budget = budget
        queue.start_with(LINEAR)
        assert queue.batch_size == size


def test_measured_sizes_above_the_limit_are_left_out() -> None:
    queue = queue_of()
    queue.start_with({**LINEAR, 5: 1.5, 8: 2.0})
    assert set(queue.times.measured) == set(LINEAR)
    assert not queue.times.guessed
    queue.guess(LINEAR)
    assert queue.times.guessed


def test_changed_limits_keep_what_is_known_and_equal_ones_change_nothing() -> None:
    queue = queue_of()
    queue.start_with(LINEAR)
    times = queue.times
    queue.follow(replace(LIMITS))
    assert queue.times is times
    queue.guess(LINEAR)
    queue.follow(replace(LIMITS, max_batch_size=2))
    assert (queue.batch_size, queue.times.measured, queue.times.guessed) == (1, {1: 1.0, 2: 1.25}, True)


def test_work_is_whole_batches_and_a_rest_on_a_share_of_the_device() -> None:
    queue = queue_of(limits=replace(LIMITS, objective=3.0, instances=2))
    queue.start_with(LINEAR)
    assert queue.batch_size == 4
    assert [queue.work(rows) for rows in (0, 1, 4, 5, 10)] == [0.0, 0.5, 0.75, 1.25, 2.125]


def learning(policy: PolicyName = "deferred", guessed: bool = False) -> Queue:
    """A queue after sixteen batches of four rows, each row of which took as long in any other."""
    queue = queue_of(limits=replace(LIMITS, policy=policy))
    (queue.guess if guessed else queue.start_with)({1: 0.25, 2: 0.5, 4: 1.0})
    for _ in range(16):
        queue.learn(1, 0.25)
    return queue


def test_usual_batches_make_a_trial_due_where_the_policy_tries_sizes() -> None:
    assert learning().trials.size == 2
    assert learning("eager").trials.size == 0


def test_batches_that_correct_a_guess_count_for_no_trial() -> None:
    queue = learning(guessed=True)
    assert queue.trials.size == 0
    queue.learn(1, 0.25)
    assert queue.trials.size != 0


def test_times_measured_anew_begin_without_trials() -> None:
    queue = learning()
    queue.start_with({1: 0.25, 2: 0.5, 4: 1.0})
    assert queue.trials.size == 0


def test_each_batch_may_change_the_size_of_the_next() -> None:
    queue = queue_of(limits=replace(LIMITS, objective=3.0))
    queue.start_with(LINEAR)
    assert queue.batch_size == 4
    queue.learn(4, 3.0)
    assert queue.batch_size == 1  # all sizes take longer than half of the time that requests have


def test_trials_that_replace_a_time_change_the_size() -> None:
    queue = queue_of(limits=replace(LIMITS, objective=9.0))
    queue.start_with({1: 1.0, 2: 2.5, 4: 5.0})
    assert queue.batch_size == 1
    assert [queue.learn_trial(2, 1.25) for _ in range(5)] == [False] * 4 + [True]
    assert queue.batch_size == 2


def test_trial_is_paid_for_with_what_batches_have_saved() -> None:
    queue = queue_of(limits=replace(LIMITS, objective=9.0))
    queue.start_with({1: 1.0, 2: 5.0, 4: 10.0})
    queue.trials.ran(1e6, 1, queue.times, 9.0)  # as much as may be saved: four seconds
    queue.learn_trial(2, 6.0)  # two rows take two seconds one by one
    for _ in range(15):
        queue.learn(1, 1.0)
    assert queue.trials.size == 0


def test_requests_with_little_time_are_tried_in_batches_that_take_half_of_it() -> None:
    queue = queue_of(limits=replace(LIMITS, objective=1.0))
    queue.start_with({1: 0.25, 2: 0.5, 4: 1.0})
    found = set()
    for _ in range(4):
        for _ in range(16):
            queue.learn(1, 0.25)
        found.add(queue.trials.size)
        queue.trials.start()
    assert found == {2}  # four rows would take a second


def test_no_trial_is_due_before_anything_is_known() -> None:
    queue = queue_of(limits=replace(LIMITS, max_batch_size=20))
    for rows in range(1, 20):  # the first batch of a size says nothing
        queue.learn(rows, 1.0)
    assert not queue.times.known
    assert queue.trials.size == 0


def test_size_follows_the_time_that_requests_have() -> None:
    queue = queue_of(1, 1)
    queue.start_with(LINEAR)
    queue.budget = 2.5
    queue.pop(1)
    assert queue.batch_size == 2
