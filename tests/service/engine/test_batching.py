"""When batches close and what is in them, on a virtual clock."""

import heapq
import math
import random
import weakref
from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batching import Batch, Batcher, Key, Limits, Request
from service.errors import QueueFull

KEY = Key("model", 1, ((32, 32, 1),))
WIDE = Key("model", 1, ((64, 64, 1),))
OTHER = Key("other", 1, ((32, 32, 1),))
LIMITS = Limits(max_batch_size=4, max_queue_delay=0.010, max_queue=100)


def request(
    number: Hashable, arrived: float = 0.0, rows: int = 1, deadline: float = math.inf, source: Hashable = "front end"
) -> Request:
    return Request(number, source, rows, arrived, deadline, payload=f"payload {number}")


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
        batcher.add(key, each, limits)


def ids(batch: Batch | float | None) -> list[Hashable]:
    assert isinstance(batch, Batch)
    return [each.id for each in batch.requests]


@pytest.fixture
def batcher() -> Batcher:
    return Batcher()


def test_empty_batcher_has_nothing_to_do(batcher: Batcher) -> None:
    assert batcher.next(0.0) is None
    assert batcher.expired(0.0) == []
    assert len(batcher) == 0


def test_full_batch_closes_without_waiting(batcher: Batcher) -> None:
    fill(batcher, *(request(number) for number in range(4)), following=9)
    assert ids(batcher.next(0.0)) == [0, 1, 2, 3]


def test_batch_that_lacks_one_waits_while_that_one_is_on_its_way(batcher: Batcher) -> None:
    fill(batcher, *(request(number) for number in range(3)), following=1)
    assert batcher.next(0.0) == 0.010


def test_nothing_on_its_way_closes_at_once(batcher: Batcher) -> None:
    fill(batcher, request(1), following=0)
    assert ids(batcher.next(0.0)) == [1]


def test_wait_ends_with_the_queue_delay_of_the_oldest(batcher: Batcher) -> None:
    fill(batcher, request(1, arrived=5.000), request(2, arrived=5.008), following=1)
    assert batcher.next(5.008) == pytest.approx(5.010)
    assert isinstance(batcher.next(5.0099), float)
    assert ids(batcher.next(5.0101)) == [1, 2]


def test_wait_ends_as_soon_as_nothing_more_comes(batcher: Batcher) -> None:
    fill(batcher, request(1), following=1)
    assert isinstance(batcher.next(0.001), float)
    batcher.expect("model", "front end", 0, 1, 0.001)
    assert ids(batcher.next(0.001)) == [1]


def test_what_another_front_end_expects_counts_too(batcher: Batcher) -> None:
    batcher.expect("model", "second", 2, 1, 0.0)
    fill(batcher, request(1), following=0)
    assert isinstance(batcher.next(0.0), float)
    batcher.forget("second")
    assert ids(batcher.next(0.0)) == [1]


def test_what_is_on_its_way_to_another_model_is_not_waited_for(batcher: Batcher) -> None:
    batcher.expect("other", "front end", 5, 5, 0.0)
    fill(batcher, request(1), following=0)
    assert ids(batcher.next(0.0)) == [1]


def test_lone_caller_never_waits(batcher: Batcher) -> None:
    for turn in range(100):
        fill(batcher, request(turn, arrived=turn / 1000), company=1)
        assert ids(batcher.next(turn / 1000)) == [turn]


def test_overlapping_callers_are_waited_for_at_their_pace(batcher: Batcher) -> None:
    for turn in range(3):
        fill(batcher, request(turn, arrived=turn / 1000), company=2)
    assert batcher.next(0.002) == pytest.approx(0.004)  # two gaps of a millisecond behind the last arrival
    assert ids(batcher.next(0.0041)) == [0, 1, 2]


def test_callers_that_keep_coming_are_not_waited_for_beyond_the_queue_delay(batcher: Batcher) -> None:
    limits = Limits(max_batch_size=100, max_queue_delay=0.010, max_queue=100)
    for turn in range(10):
        fill(batcher, request(turn, arrived=turn / 1000), limits=limits, company=9)
    assert batcher.next(0.009) == 0.010
    fill(batcher, request(10, arrived=0.0099), limits=limits, company=9)
    assert len(ids(batcher.next(0.010))) == 11


def test_overlap_of_the_past_is_forgotten(batcher: Batcher) -> None:
    fill(batcher, request(1, arrived=0.0), request(2, arrived=0.001), company=2)
    assert ids(batcher.next(1.0)) == [1, 2]
    fill(batcher, request(3, arrived=0.050), company=1)
    assert isinstance(batcher.next(0.050), float)  # not yet
    assert ids(batcher.next(1.0)) == [3]
    fill(batcher, request(4, arrived=0.200), company=1)
    assert ids(batcher.next(0.200)) == [4]


def test_pace_is_learnt_anew_after_a_pause(batcher: Batcher) -> None:
    limits = Limits(max_batch_size=100, max_queue_delay=1.0, max_queue=100)
    fill(batcher, request("before"), limits=limits, company=2)
    assert ids(batcher.next(5.0)) == ["before"]
    for turn in range(3):
        fill(batcher, request(turn, arrived=9 + turn / 1000), limits=limits, company=2)
    # Two gaps of a millisecond behind the last arrival: the nine seconds of silence are no gap.
    assert batcher.next(9.002) == pytest.approx(9.004)


def test_first_after_a_pause_is_not_held_for_as_long_as_the_pause(batcher: Batcher) -> None:
    limits = Limits(max_batch_size=100, max_queue_delay=1.0, max_queue=100)
    fill(batcher, request("before"), limits=limits, company=2)
    assert ids(batcher.next(5.0)) == ["before"]
    fill(batcher, request("after", arrived=5.0), limits=limits, company=2)
    assert ids(batcher.next(5.0)) == ["after"]


def test_overlap_of_one_model_does_not_hold_back_another(batcher: Batcher) -> None:
    fill(batcher, request(1, arrived=0.0), request(2, arrived=0.001), company=2)
    fill(batcher, request(3, arrived=0.001), key=OTHER, company=1)
    assert ids(batcher.next(0.001)) == [3]
    assert isinstance(batcher.next(0.001), float)


def test_batch_closes_early_enough_for_a_deadline(batcher: Batcher) -> None:
    batcher.ran(KEY, 2, 0.003)
    fill(batcher, request(1), request(2, deadline=0.008), following=1)
    assert batcher.next(0.0) == pytest.approx(0.005)  # 8 ms less the 3 ms that a run of two takes
    assert ids(batcher.next(0.0051)) == [1, 2]


def test_deadline_beyond_the_queue_delay_changes_nothing(batcher: Batcher) -> None:
    batcher.ran(KEY, 1, 0.003)
    fill(batcher, request(1, deadline=0.5), following=1)
    assert batcher.next(0.0) == 0.010


def test_run_times_of_another_shape_are_not_used(batcher: Batcher) -> None:
    batcher.ran(WIDE, 1, 0.003)
    fill(batcher, request(1, deadline=0.008), following=1)
    assert batcher.next(0.0) == 0.008


def test_deadline_of_a_request_that_left_is_forgotten(batcher: Batcher) -> None:
    fill(batcher, request(1, deadline=0.002), request(2), following=1)
    assert batcher.next(0.0) == 0.002
    batcher.cancel(1)
    assert batcher.next(0.0) == 0.010


def test_expired_requests_are_taken_out_and_never_in_a_batch(batcher: Batcher) -> None:
    fill(
        batcher,
        request(1, deadline=0.001),
        request(2),
        request(3, deadline=0.002),
        request(4, deadline=0.003),
        following=1,
    )
    assert sorted(each.id for each in batcher.expired(0.002)) == [1, 3]
    assert batcher.expired(0.002) == []
    assert ids(batcher.next(1.0)) == [2, 4]
    assert len(batcher) == 0


def test_deadline_that_is_now_has_passed(batcher: Batcher) -> None:
    fill(batcher, request(1, deadline=0.5))
    assert batcher.expired(math.nextafter(0.5, 0)) == []
    assert [each.id for each in batcher.expired(0.5)] == [1]


def test_queue_whose_requests_have_all_expired_is_empty(batcher: Batcher) -> None:
    fill(batcher, request(1, deadline=0.1), request(2, deadline=0.1))
    assert len(batcher.expired(0.1)) == 2
    assert batcher.next(0.1) is None
    assert batcher.waiting("model") == 0


def test_cancel_takes_out_exactly_one(batcher: Batcher) -> None:
    fill(batcher, request(1), request(2, rows=2), request(3))
    cancelled = batcher.cancel(2)
    assert cancelled is not None
    assert cancelled.payload == "payload 2"
    assert batcher.waiting("model") == 2
    assert batcher.cancel(2) is None
    assert batcher.cancel("never came") is None
    assert ids(batcher.next(0.0)) == [1, 3]


def test_running_request_cannot_be_cancelled(batcher: Batcher) -> None:
    fill(batcher, request(1))
    batcher.next(0.0)
    assert batcher.cancel(1) is None


def test_requests_of_another_shape_do_not_end_a_batch(batcher: Batcher) -> None:
    for number in range(4):
        fill(batcher, request(("narrow", number), arrived=number), key=KEY)
        fill(batcher, request(("wide", number), arrived=number + 0.5), key=WIDE)
    assert ids(batcher.next(9.0)) == [("narrow", number) for number in range(4)]
    assert ids(batcher.next(9.0)) == [("wide", number) for number in range(4)]
    assert batcher.next(9.0) is None


@pytest.mark.parametrize("other", [OTHER, WIDE, Key("model", 2, KEY.shape)])
def test_batch_holds_one_model_version_and_shape(batcher: Batcher, other: Key) -> None:
    fill(batcher, request(1))
    fill(batcher, request(2), key=other)
    found = [batcher.next(0.0), batcher.next(0.0)]
    assert [ids(batch) for batch in found] == [[1], [2]]
    assert [batch.key for batch in found if isinstance(batch, Batch)] == [KEY, other]


def test_full_queue_refuses_with_the_time_until_there_is_room(batcher: Batcher) -> None:
    limits = Limits(max_batch_size=4, max_queue_delay=0.010, max_queue=8)
    batcher.ran(KEY, 4, 0.5)
    for number in range(8):
        fill(batcher, request(number), limits=limits)
    with pytest.raises(QueueFull, match="'model' holds 8 images, want at most 8") as full:
        batcher.add(KEY, request(8), limits)
    assert full.value.retry_after == pytest.approx(1.0)  # two batches of half a second
    assert batcher.waiting("model") == len(batcher) == 8
    assert batcher.cancel(8) is None
    batcher.next(0.0)
    batcher.add(KEY, request(9), limits)


@pytest.mark.parametrize("run_time", [None, 0.0, 1e-9, 1e9])
def test_hint_is_neither_nothing_nor_for_ever(batcher: Batcher, run_time: float | None) -> None:
    limits = Limits(max_batch_size=4, max_queue_delay=0.010, max_queue=4)
    if run_time is not None:
        batcher.ran(KEY, 4, run_time)
    fill(batcher, request(1, rows=4), limits=limits)
    with pytest.raises(QueueFull) as full:
        batcher.add(KEY, request(2), limits)
    assert full.value.retry_after is not None
    assert 0.01 <= full.value.retry_after <= 10


def test_queue_is_counted_in_images_over_all_shapes_of_a_model(batcher: Batcher) -> None:
    limits = Limits(max_batch_size=4, max_queue_delay=0.010, max_queue=8)
    batcher.add(KEY, request(1, rows=3), limits)
    batcher.add(WIDE, request(2, rows=4), limits)
    with pytest.raises(QueueFull):
        batcher.add(KEY, request(3, rows=2), limits)
    batcher.add(KEY, request(4, rows=1), limits)
    batcher.add(OTHER, request(5, rows=8), limits)  # another model has a queue of its own


def test_request_larger_than_the_whole_queue_waits_alone(batcher: Batcher) -> None:
    limits = Limits(max_batch_size=32, max_queue_delay=0.010, max_queue=4)
    batcher.add(KEY, request(1, rows=8), limits)
    with pytest.raises(QueueFull, match="holds 8 images, want at most 4"):
        batcher.add(KEY, request(2), limits)
    assert ids(batcher.next(1.0)) == [1]
    batcher.add(KEY, request(3), limits)
    with pytest.raises(QueueFull, match="holds 1 images"):  # it does not push in where others wait
        batcher.add(KEY, request(4, rows=8), limits)


def test_oldest_goes_first_among_queues_that_are_ready(batcher: Batcher) -> None:
    fill(batcher, request("late", arrived=2.0), key=KEY)
    fill(batcher, request("early", arrived=1.0), key=WIDE)
    fill(batcher, request("earliest", arrived=0.0), key=OTHER)
    assert [ids(batcher.next(3.0)) for _ in range(3)] == [["earliest"], ["early"], ["late"]]


def test_full_batches_of_one_model_do_not_starve_another(batcher: Batcher) -> None:
    fill(batcher, request("patient", arrived=0.0), key=OTHER, following=1)
    ran: list[Hashable] = []
    for turn in range(20):
        now = 0.002 * turn
        fill(batcher, *(request((turn, number), arrived=now) for number in range(4)), key=KEY, following=9)
        ran += ids(batcher.next(now))
        if "patient" in ran:
            break
    assert "patient" in ran
    assert now <= 0.012  # its own queue delay, and a turn


def test_queue_that_still_waits_does_not_hold_back_one_that_is_ready(batcher: Batcher) -> None:
    fill(batcher, request("waits", arrived=0.0), key=OTHER, following=1)
    fill(batcher, request("ready", arrived=0.005), key=KEY, following=0)
    assert ids(batcher.next(0.006)) == ["ready"]
    assert batcher.next(0.006) == 0.010


def test_device_is_asked_again_when_the_first_batch_closes(batcher: Batcher) -> None:
    fill(batcher, request(1, arrived=0.004), key=KEY, following=1)
    fill(batcher, request(2, arrived=0.001), key=OTHER, following=1)
    assert batcher.next(0.005) == pytest.approx(0.011)


def test_several_rows_never_make_a_batch_too_large(batcher: Batcher) -> None:
    fill(batcher, request(1, rows=2), request(2, rows=1), request(3, rows=3), request(4, rows=1))
    assert [ids(batcher.next(0.0)) for _ in range(2)] == [[1, 2], [3, 4]]


def test_request_larger_than_a_batch_runs_alone(batcher: Batcher) -> None:
    fill(batcher, request(1), request(2, rows=9), request(3))
    assert [ids(batcher.next(0.0)) for _ in range(3)] == [[1], [2], [3]]


def test_batch_knows_its_rows(batcher: Batcher) -> None:
    fill(batcher, request(1, rows=2), request(2, rows=1))
    batch = batcher.next(0.0)
    assert isinstance(batch, Batch)
    assert batch.rows == 3


def test_what_a_lost_front_end_sent_is_not_run(batcher: Batcher) -> None:
    fill(batcher, request(1, source="lost", rows=2), request(2, source="kept"), following=0)
    fill(batcher, request(3, source="lost", deadline=1.0), key=WIDE)
    batcher.expect("model", "lost", 7, 1, 0.0)
    batcher.forget("lost")
    assert batcher.waiting("model") == len(batcher) == 1
    assert ids(batcher.next(0.0)) == [2]
    assert batcher.next(0.0) is None
    batcher.forget("unheard of")


def test_run_time_follows_the_measurements(batcher: Batcher) -> None:
    assert batcher.run_time(KEY, 4) == 0.0
    batcher.ran(KEY, 4, 0.100)
    assert batcher.run_time(KEY, 4) == pytest.approx(0.100)
    for _ in range(50):
        batcher.ran(KEY, 4, 0.200)
    assert batcher.run_time(KEY, 4) == pytest.approx(0.200, rel=0.01)
    before = batcher.run_time(KEY, 4)
    batcher.ran(KEY, 4, 10.0)  # one slow run is not the rule
    assert batcher.run_time(KEY, 4) - before < 2.5


def test_size_that_was_never_run_is_taken_from_the_nearest(batcher: Batcher) -> None:
    batcher.ran(KEY, 1, 0.001)
    batcher.ran(KEY, 8, 0.008)
    assert [batcher.run_time(KEY, rows) for rows in (1, 2, 4, 5, 8, 32)] == [0.001] * 3 + [0.008] * 3


def test_any_number_of_shapes_does_not_grow_the_run_times_for_ever(batcher: Batcher) -> None:
    batcher.ran(KEY, 1, 0.001)
    for side in range(5000):
        batcher.ran(Key("model", 1, (side, side)), 1, 0.002)
        batcher.ran(KEY, 1, 0.001)
    assert batcher.run_time(KEY, 1) == pytest.approx(0.001)  # in use: kept
    assert batcher.run_time(Key("model", 1, (4999, 4999)), 1) == 0.002
    assert batcher.run_time(Key("model", 1, (0, 0)), 1) == 0.0  # long not in use: forgotten


class Caller:
    """An id whose end can be seen: nothing remembers a caller whom the batcher has forgotten."""


def test_callers_who_cancel_are_not_remembered_until_their_deadlines(batcher: Batcher) -> None:
    callers: weakref.WeakSet[Caller] = weakref.WeakSet()

    def add(deadline: float) -> Caller:
        caller = Caller()
        callers.add(caller)
        batcher.add(KEY, Request(caller, "front end", 1, 0.0, deadline), LIMITS)
        return caller

    add(deadline=1.0)  # waits all the time, so that its queue is never empty, with the nearest deadline
    for _ in range(5000):
        batcher.cancel(add(deadline=3600.0))
    assert len(batcher) == 1
    assert 1 <= len(callers) < 100


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([KEY, WIDE, OTHER]),
        st.integers(1, 6),  # rows
        st.floats(0, 0.01),  # seconds since the arrival before
        st.one_of(st.none(), st.floats(0, 0.05)),  # seconds until the deadline
        st.integers(0, 2),  # on their way
        st.integers(1, 3),  # under way
    ),
    max_size=40,
)


@given(ARRIVALS, st.sampled_from([0.0, 0.001, 0.02]))
def test_no_request_waits_longer_than_the_queue_delay_for_company(
    arrivals: list[tuple[Key, int, float, float | None, int, int]], run_time: float
) -> None:
    """Whatever arrives, an idle device is never asked to come back later than the oldest's queue delay."""
    batcher = Batcher()
    for key in (KEY, WIDE, OTHER):
        batcher.ran(key, 4, run_time)
    now = 0.0
    waiting: dict[Hashable, Request] = {}
    for number, (key, rows, gap, span, following, company) in enumerate(arrivals):
        now += gap
        one = request(number, now, rows, math.inf if span is None else now + span)
        fill(batcher, one, key=key, following=following, company=company)
        waiting[number] = one
        for gone in batcher.expired(now):
            assert gone.deadline <= now
            del waiting[gone.id]
        while isinstance(decision := batcher.next(now), Batch):
            rows_of = sum(each.rows for each in decision.requests)
            assert rows_of <= LIMITS.max_batch_size or len(decision.requests) == 1
            for each in decision.requests:
                assert each.deadline > now
                del waiting[each.id]
        if waiting:
            assert isinstance(decision, float)
            assert now < decision <= min(each.arrived for each in waiting.values()) + LIMITS.max_queue_delay
            assert decision <= min(each.deadline for each in waiting.values())
        else:
            assert decision is None
    assert len(batcher) == len(waiting)


class Simulation:
    """Front ends, a batcher and one device on a virtual clock. Counts how every request ended."""

    KEYS = (KEY, WIDE, OTHER, Key("model", 2, KEY.shape))
    LIMITS = Limits(max_batch_size=16, max_queue_delay=0.004, max_queue=64)

    def __init__(self, seed: int, requests: int, load: float) -> None:
        self._random = random.Random(seed)
        self._requests = requests
        self._gap = 0.0006 / load  # seconds between arrivals; a full batch of 16 takes 9.4 ms
        self._batcher = Batcher()
        self.alive: dict[Hashable, tuple[Key, Request]] = {}
        self.ended: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.longest_wait = 0.0

    def run(self) -> None:
        events = [(0.0, 0, "arrival")]
        device_free_at = 0.0
        arrived = 0
        turns = 0
        while events:
            now, _, event = heapq.heappop(events)
            turns += 1
            if event == "arrival":
                self._arrive(arrived, now)
                arrived += 1
                if arrived < self._requests:
                    heapq.heappush(events, (now + self._random.expovariate(1 / self._gap), turns, "arrival"))
                else:
                    for source in range(3):
                        for model in ("model", "other"):
                            self._batcher.expect(model, source, 0, 0, now)
            for gone in self._batcher.expired(now):
                assert gone.deadline <= now
                self._end(gone, "expired")
            if now < device_free_at:
                continue
            decision = self._batcher.next(now)
            if isinstance(decision, Batch):
                device_free_at = now + self._device(decision, now)
                heapq.heappush(events, (device_free_at, turns, "idle"))
            elif decision is not None:
                assert decision > now, "the batcher asks to be asked again at once"
                heapq.heappush(events, (decision, turns, "timer"))
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

    def _arrive(self, number: int, now: float) -> None:
        choose = self._random
        key = choose.choices(self.KEYS, (8, 2, 2, 1))[0]
        deadline = now + choose.expovariate(1 / 0.02) if choose.random() < 0.5 else math.inf
        source = choose.randrange(3)
        one = Request(number, source, choose.choice((1, 1, 1, 2, 5, 16, 20)), now, deadline)
        self._batcher.expect(key.model, source, choose.choice((0, 0, 1, 3)), choose.choice((1, 1, 2, 9)), now)
        try:
            self._batcher.add(key, one, self.LIMITS)
            self.alive[number] = (key, one)
        except QueueFull:
            self.ended["refused"] += 1
        if choose.random() < 0.05:
            self._cancel(choose.randrange(max(0, number - 50), number + 1))

    def _cancel(self, number: int) -> None:
        gone = self._batcher.cancel(number)
        assert (gone is not None) == (number in self.alive)
        if gone is not None:
            self._end(gone, "cancelled")

    def _device(self, batch: Batch, now: float) -> float:
        assert batch.requests
        assert batch.rows <= self.LIMITS.max_batch_size or len(batch.requests) == 1
        self.sizes.append(batch.rows)
        for one in batch.requests:
            assert one.deadline > now
            assert self.alive[one.id] == (batch.key, one)
            self.longest_wait = max(self.longest_wait, now - one.arrived)
            self._end(one, "ran")
        seconds = 0.003 + 0.0004 * batch.rows
        self._batcher.ran(batch.key, batch.rows, seconds)
        return seconds

    def _end(self, one: Request, how: str) -> None:
        del self.alive[one.id]  # KeyError: it ended twice
        self.ended[how] += 1


@pytest.fixture(scope="module", params=[0.2, 1.0, 3.0], ids=lambda load: f"load {load}")
def simulation(request: pytest.FixtureRequest) -> Simulation:
    made = Simulation(seed=7, requests=40_000, load=request.param)
    made.run()
    return made


def test_every_request_ends_exactly_once_and_none_runs_after_its_deadline(simulation: Simulation) -> None:
    simulation.check_counters()
    assert not simulation.alive
    assert sum(simulation.ended.values()) == 40_000
    assert all(simulation.ended[how] > 0 for how in ("ran", "expired", "cancelled"))


def test_wait_is_bounded_by_the_queue_whatever_the_load(simulation: Simulation) -> None:
    # At most 64 images of each of two models, at worst one by one, and no one is overtaken for ever.
    assert simulation.longest_wait < 0.004 + 2 * 64 * 0.0034


def test_overload_fills_batches_and_refuses_the_rest() -> None:
    calm, busy = (Simulation(seed=3, requests=3000, load=load) for load in (0.05, 5.0))
    calm.run()
    busy.run()
    assert calm.ended["refused"] == 0
    assert busy.ended["refused"] > 1000
    assert sum(busy.sizes) / len(busy.sizes) > 1.5 * sum(calm.sizes) / len(calm.sizes)
