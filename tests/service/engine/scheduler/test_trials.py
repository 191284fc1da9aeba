"""Which other batch sizes are tried, what that costs, and what becomes of a profile that was measured badly."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count

import pytest

from convoy.service.bench.simulation import Stream, simulate
from convoy.service.engine.scheduler import trials
from convoy.service.engine.scheduler.batcher import Batcher
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.scheduler.request_queue import Key, Limits
from convoy.service.ipc.channel import Request

KEY = Key("model", 1, ((32, 32, 1),))
SIZES = (1, 2, 4, 8, 16, 32)
LIMITS = Limits(max_batch_size=32, max_queue_delay=0.005, max_queue=1024)
BATCHES = 1500

Cost = Callable[[int], float]  # seconds of a batch by its size


def rising(size: int) -> float:
    """The larger, the more images a second."""
    return 0.0006 + 0.0002 * size


def peaked(size: int) -> float:
    """The most images a second in batches of 8, a quarter fewer with each doubling beyond."""
    return size * (0.001 + 0.004 / min(size, 8)) * 1.25 ** max(0.0, math.log2(size / 8))


def flat(size: int) -> float:
    """As many images a second in batches of any size."""
    return 0.004 * size


@dataclass
class Served:
    """What a batcher has made of its callers. `ran` is the rows of each batch, in order."""

    ran: list[int]
    late: int
    seconds: float
    replaced: int  # times that trials have contradicted
    times: Mapping[int, float]  # at the end

    def rate(self, cost: Cost, last: int = BATCHES) -> float:
        """Images a second of run time, over the last batches."""
        ran = self.ran[-last:]
        return sum(ran) / sum(map(cost, ran))


def serve(
    cost: Cost,
    profile: Mapping[int, float],
    callers: int = 64,
    batches: int = BATCHES,
    deadline: float = 10.0,
    noise: float = 0.0,
    limits: Limits = LIMITS,
) -> Served:
    """Callers on a virtual clock: each sends its next request half a millisecond after the last answer."""
    generator, order, ids = random.Random(4), count(), count()
    batcher, found, again, in_flight = Batcher(), Served([], 0, 0.0, 0, {}), math.inf, 0
    batcher.measured(KEY, limits, profile)
    events: list[tuple[float, int, object]] = [(generator.uniform(0, 0.001), next(order), None) for _ in range(callers)]
    heapq.heapify(events)
    now = 0.0
    while len(found.ran) < batches:
        if not events or again < events[0][0]:
            now = again
        else:
            now, _, ended = heapq.heappop(events)
            if ended is None:
                in_flight += 1
                batcher.expect(KEY.model, 0, 0, in_flight, now)
                batcher.add(KEY, Request(next(ids), 0, 1, now, now + deadline), limits, now)
            else:
                batch, seconds = ended  # type: ignore[misc]
                found.replaced += batcher.ended(batch, [(batch.rows, seconds)])
                found.ran.append(batch.rows)
                in_flight -= batch.rows
                found.late += sum(request.deadline < now for request in batch.requests)
                for _ in batch.requests:
                    heapq.heappush(events, (now + generator.uniform(0.0003, 0.0007), next(order), None))
        while (decision := batcher.next(now)).batch is not None:
            seconds = cost(decision.batch.rows) * math.exp(generator.gauss(0, noise))
            heapq.heappush(events, (now + seconds, next(order), (decision.batch, seconds)))
        assert not decision.late
        again = decision.again
    found.seconds, found.times = now, batcher.times(KEY)
    return found


def right(cost: Cost) -> dict[int, float]:
    return {size: cost(size) for size in SIZES}


def wrong(cost: Cost, size: int, factor: float) -> dict[int, float]:
    """A profile in which one size was measured badly."""
    return {**right(cost), size: factor * cost(size)}


@pytest.fixture
def without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_EVERY", 10**9)


def best(cost: Cost) -> float:
    return max(size / cost(size) for size in SIZES)


@pytest.mark.simulation
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cost", [rising, peaked])
def test_size_that_was_measured_badly_costs_nothing_1200_batches_later(
    cost: Cost, size: int, factor: float, noise: float
) -> None:
    found = serve(cost, wrong(cost, size, factor), noise=noise)
    assert found.rate(cost, last=BATCHES - 1200) >= 0.97 * best(cost)


@pytest.mark.usefixtures("without_trials")
@pytest.mark.parametrize(
    ("cost", "size", "factor"), [(peaked, 8, 2.0), (peaked, 4, 0.5), (rising, 32, 2.0), (rising, 16, 0.5)]
)
def test_without_trials_a_bad_measurement_costs_throughput_for_ever(cost: Cost, size: int, factor: float) -> None:
    assert serve(cost, wrong(cost, size, factor)).rate(cost, last=300) < 0.95 * best(cost)


@pytest.mark.simulation
@pytest.mark.parametrize("cost", [rising, peaked, flat])
@pytest.mark.parametrize("callers", [4, 16, 64])
def test_right_profile_stays_and_its_trials_cost_at_most_1_percent(
    cost: Cost, callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = serve(cost, right(cost), callers)
    assert not found.replaced
    assert found.times == pytest.approx(right(cost))
    monkeypatch.setattr(trials, "_EVERY", 10**9)
    plain = serve(cost, right(cost), callers)
    assert sum(found.ran) / found.seconds >= 0.99 * sum(plain.ran) / plain.seconds


def test_other_sizes_are_tried_although_the_profile_is_right() -> None:
    """What the test above measures is there."""
    sizes = Counter(serve(peaked, right(peaked)).ran)
    assert min(sizes[size] for size in (2, 4, 16, 32)) >= 1
    assert sizes[8] >= 0.9 * BATCHES


@pytest.mark.simulation
@pytest.mark.parametrize("cost", [rising, peaked])
def test_noise_alone_changes_no_choice_that_matters(cost: Cost) -> None:
    found = serve(cost, right(cost), noise=0.1, batches=3 * BATCHES)
    assert found.rate(cost, 3 * BATCHES) >= 0.97 * best(cost)


def test_sizes_that_seemed_poor_when_the_profile_ended_are_found() -> None:
    """The machine was busy while batches of 4 and 8 were measured, so no larger ones were."""
    profile = {size: rising(size) * (3.0 if size > 2 else 1.0) for size in (1, 2, 4, 8)}
    assert serve(rising, profile).rate(rising, last=300) >= 0.97 * best(rising)


@pytest.mark.simulation
@pytest.mark.parametrize("load", [0.5, 0.8, 0.95, 3.0])
def test_no_deadline_suffers(load: float) -> None:
    """A trial of twice the size takes two and a half times as long."""
    limits = replace(LIMITS, objective=0.1)
    stream = Stream("model", right(peaked), limits, 0.1, load * best(peaked))
    (found,) = simulate([stream], 20_000, seed=2)
    assert found.late == 0
    assert found.dropped <= 0.001 * (found.offered - found.refused)


def test_trial_waits_while_it_could_make_a_request_of_another_model_late() -> None:
    """16 images take 4 ms in two batches; then the other model's image takes 0.8 ms."""
    other, limits = Key("other", 1, ((32, 32, 1),)), replace(LIMITS, objective=0.005)
    tried = {}
    for left in (0.0055, 10.0):
        batcher = Batcher()
        for key in (KEY, other):
            batcher.measured(key, limits, right(rising))
        first = []
        for turn in range(100):
            for row in range(16):
                batcher.add(KEY, Request(16 * turn + row, 0, 1, turn, math.inf), limits, turn)
            batcher.add(other, Request(turn, 1, 1, turn, turn + left), limits, turn)
            ran = []
            while (batch := batcher.next(turn).batch) is not None:
                ran.append((batch.key.model, batch.rows))
                batcher.ended(batch, [(batch.rows, rising(batch.rows))])
            first.append(ran[0])
        tried[left] = sorted(set(first))
    assert tried == {0.0055: [("model", 9)], 10.0: [("model", 2), ("model", 9)]}


def test_policies_that_only_serve_for_comparison_try_nothing() -> None:
    found = serve(peaked, right(peaked), limits=replace(LIMITS, policy="timeout"))
    assert not {size for size in found.ran if size < 32} - {found.ran[0], found.ran[-1]}


@pytest.mark.parametrize(
    ("chosen", "most", "found"),
    [
        (1, 32, [2, 4]),
        (8, 32, [2, 4, 16, 32]),
        (32, 32, [8, 16]),
        (41, 64, [16, 32, 64]),
        (16, 20, [4, 8, 20]),
        (31, 64, [8, 16, 64]),
        (31, 256, [8, 16, 64, 128]),
        (5, 64, [2, 4, 8, 16]),  # a quarter more or less is just worth a comparison
        (4, 5, [1, 2, 5]),
        (2, 32, [1, 4, 8]),
        (1, 1, []),
    ],
)
def test_tried_are_the_next_powers_of_two_on_both_sides(chosen: int, most: int, found: list[int]) -> None:
    assert trials.candidates(chosen, most) == found


def test_five_trials_in_a_row_have_to_contradict() -> None:
    times = RunTimes(32, right(rising))
    answers = [times.learn_trial(8, 2 * rising(8)) for _ in range(4)]
    answers += [times.learn_trial(8, rising(8))]  # once it was as measured
    answers += [times.learn_trial(8, 2 * rising(8)) for _ in range(5)]
    assert answers == [False] * 9 + [True]
    assert times.predict(8) == pytest.approx(2 * rising(8))


def test_trial_says_nothing_about_the_speed_of_the_machine() -> None:
    times = RunTimes(32, right(rising))
    for _ in range(5):
        times.learn_trial(8, rising(8) / 2)
    assert times.predict(32) == pytest.approx(rising(32))


def test_time_that_no_trial_supports_gives_way_to_one_that_trials_found() -> None:
    times = RunTimes(32, {**right(rising), 8: 10 * rising(8)})
    for _ in range(5):
        times.learn_trial(16, rising(16))
    assert times.predict(16) == pytest.approx(rising(16))
    assert times.predict(8) <= rising(16)


def test_first_trial_of_a_size_that_never_ran_says_nothing() -> None:
    times = RunTimes(32, {1: rising(1), 16: rising(16)})
    assert [times.learn_trial(4, 10 * rising(4)) for _ in range(6)] == [False] * 5 + [True]


def after(
    own: trials.Trials, batches: int, times: RunTimes, seconds: float = 0.0, chosen: int = 4, longest: float = 1e9
) -> int:
    """The size that is due after so many batches of so many seconds."""
    for _ in range(batches):
        own.ran(seconds, chosen, times, longest)
    return own.size


def steady(most: int = 16) -> RunTimes:
    """A device on which trials cost nothing: each row takes 0.5 s."""
    return RunTimes(most, {size: size / 2 for size in (1, 2, 4, 8, 16) if size <= most})


def test_trial_is_due_after_sixteen_batches_and_stays_due() -> None:
    own, times = trials.Trials(), steady()
    assert after(own, 15, times) == 0
    assert after(own, 1, times) == 1
    assert after(own, 50, times) == 1
    own.start()
    assert (own.size, after(own, 15, times), after(own, 1, times)) == (0, 0, 2)


def test_sizes_take_turns_also_where_too_few_requests_came() -> None:
    own, times, found = trials.Trials(), steady(), []
    for turn in range(6):
        found.append(after(own, 200, times))
        (own.miss if turn % 2 else own.start)()
    assert found == [1, 2, 8, 16, 1, 2]


def test_trial_for_which_too_few_came_is_not_due_for_eight_times_as_long() -> None:
    own, times = trials.Trials(), steady()
    after(own, 16, times)
    own.miss()
    assert own.size == 0
    assert after(own, 16 + 8 * 16 - 1, times) == 0
    assert after(own, 1, times) == 2


def test_size_whose_last_trials_contradict_its_time_comes_first() -> None:
    own, times = trials.Trials(), steady()
    times.learn_trial(8, 1.0)
    for _ in range(3):
        assert after(own, 16, times) == 8
        own.start()


@pytest.mark.parametrize(("longest", "sizes"), [(4.0, [1, 2, 8]), (3.99, [1, 2, 7]), (2.0, [1, 2])])
def test_trial_is_no_longer_than_a_batch_may_be(longest: float, sizes: list[int]) -> None:
    own, times, found = trials.Trials(), steady(), []
    for _ in sizes:
        found.append(after(own, 16, times, longest=longest))
        own.start()
    assert found == sizes


def test_no_trial_is_due_where_there_is_no_other_size() -> None:
    assert after(trials.Trials(), 100, RunTimes(1, {1: 1.0}), chosen=1) == 0


def costly() -> RunTimes:
    """A trial of two rows is expected to cost as much as they take one by one: 2 s, though it takes 5 s."""
    return RunTimes(2, {1: 1.0, 2: 5.0})


@pytest.mark.parametrize(("seconds", "due"), [(25.0, 2), (24.9, 0)])
def test_trial_waits_until_half_a_percent_of_the_run_time_pays_for_it(seconds: float, due: int) -> None:
    assert after(trials.Trials(), 16, costly(), seconds, chosen=1) == due


def saved(seconds: float) -> trials.Trials:
    """As many seconds as may be saved, less these."""
    own = trials.Trials()
    own.ran(1e6, 1, costly(), 1e9)
    own.end(2, 2.0 + seconds, 1, costly())
    return own


def test_no_more_is_saved_than_four_usual_batches_and_a_trial_costs_what_it_took_longer() -> None:
    assert after(saved(2.0), 16, costly(), chosen=1) == 2
    assert after(saved(2.1), 16, costly(), chosen=1) == 0


def test_trial_that_gains_saves_nothing() -> None:
    own = saved(2.1)
    own.end(2, 1.0, 1, costly())
    assert after(own, 16, costly(), chosen=1) == 0
    own = saved(2.0)
    own.end(2, 2.0, 1, costly())
    assert after(own, 16, costly(), chosen=1) == 2


def test_trial_costs_nothing_where_its_size_is_faster() -> None:
    assert after(trials.Trials(), 16, RunTimes(2, {1: 1.0, 2: 1.5}), chosen=1) == 2


def test_cost_of_a_trial_is_what_the_latest_one_of_its_size_took_longer() -> None:
    times = costly()
    times.learn_trial(2, 2.5)
    assert after(trials.Trials(), 16, times, seconds=6.25, chosen=1) == 2
    assert after(trials.Trials(), 16, times, seconds=6.2, chosen=1) == 0


def test_trial_may_take_half_as_long_again_as_usual_or_what_its_size_is_bound_to() -> None:
    assert trials.longest_run(8, 4, steady()) == 6.0
    assert trials.longest_run(2, 1, costly()) == 5.0
    times = costly()
    times.margin = 2.0
    assert trials.longest_run(2, 1, times) == 10.0
    assert trials.longest_run(1, 1, times) == 3.0
