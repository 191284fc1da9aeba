"""Predicting what a batch takes: from a profile, from what comes, and after the machine has changed its pace."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.engine.scheduler.latency_model import RunTimes

SIZES = (1, 2, 4, 8, 16, 32)


def affine(size: int) -> float:
    """Seconds on a device with a fixed cost: each image in a larger batch is cheaper."""
    return 0.005204 + 0.001082 * size


def flat(size: int) -> float:
    """Seconds on a device that gains nothing from batches."""
    return 0.02 * size


def profiled(most: int = 32) -> RunTimes:
    return RunTimes(most, {size: affine(size) for size in SIZES if size <= most})


def test_nothing_is_predicted_before_anything_was_measured() -> None:
    times = RunTimes(32)
    assert not times.known
    assert times.largest == 0
    assert times.predict(8) == times.bound(8) == 0.0
    assert times.largest_within(0.001) == times.efficient(32) == 32


def test_no_rows_take_no_time() -> None:
    assert profiled().predict(0) == 0.0


@pytest.mark.parametrize("size", [1, 3, 7, 8, 20, 32])
def test_between_measured_sizes_lies_a_straight_line(size: int) -> None:
    assert profiled().predict(size) == pytest.approx(affine(size))


def test_above_the_largest_measured_size_its_throughput_holds() -> None:
    times = RunTimes(64, {1: 0.010, 8: 0.040})
    assert times.predict(16) == pytest.approx(0.080)
    assert times.predict(1000) == times.predict(64)


def test_below_the_smallest_measured_size_nothing_is_faster() -> None:
    assert RunTimes(8, {4: 0.010}).predict(1) == 0.010


def test_noise_makes_no_larger_batch_faster() -> None:
    times = RunTimes(8, {1: 0.010, 2: 0.012, 4: 0.011, 8: 0.02})
    assert times.predict(4) == times.predict(2)


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-5, 1.0), min_size=1), st.floats(0, 100))
def test_largest_within_is_the_inverse_of_the_bound(measured: dict[int, float], seconds: float) -> None:
    times = RunTimes(64, measured)
    size = times.largest_within(seconds)
    assert size == 0 or times.bound(size) <= seconds * (1 + 1e-6)
    assert size == 64 or times.bound(size + 1) > seconds
    bounds = [times.bound(each) for each in range(1, 65)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_exact_time_of_a_batch_has_room_for_it(size: int) -> None:
    times = profiled()
    assert times.largest_within(times.bound(size)) == size


def test_largest_within_follows_the_speed_and_the_margin() -> None:
    times = RunTimes(8, {1: 1.0, 8: 8.0})
    times.learn(1, 2.0)
    times.margin = 2.0
    for size in range(1, 9):
        assert times.largest_within(times.bound(size)) == size
        assert times.largest_within(0.99 * times.bound(size)) == size - 1


def test_efficient_batch_is_large_where_each_image_in_it_is_cheaper() -> None:
    times = profiled()
    best = 32 / affine(32)
    assert times.efficient(32) / affine(times.efficient(32)) >= 0.998 * best
    assert (times.efficient(32) - 1) / affine(times.efficient(32) - 1) < 0.998 * best
    assert times.efficient(4) == 4


def test_efficient_batch_is_one_image_where_nothing_is_gained() -> None:
    assert RunTimes(32, {size: flat(size) for size in SIZES}).efficient(32) == 1


def test_larger_batches_are_tried_until_they_bring_nothing_more() -> None:
    tried = {cost: [] for cost in (affine, flat)}
    for cost, sizes in tried.items():
        times = RunTimes(32)
        for _ in range(12):
            size = times.efficient(32) if times.known else 1
            sizes.append(size)
            times.learn(size, cost(size))
    assert tried[affine] == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert tried[flat] == [1, 1, 2, 2, *[1] * 8]


def test_first_batch_of_a_size_says_nothing() -> None:
    times = RunTimes(32)
    times.learn(1, 5.0)
    assert not times.known
    times.learn(1, 0.005)
    times.learn(2, 5.0)
    assert times.predict(1) == 0.005


def errors(times: RunTimes, batches: int, speed: float, noise: float) -> list[float]:
    """Relative errors of the predictions while so many batches run."""
    generator = random.Random(5)
    found = []
    for _ in range(batches):
        size = generator.randint(1, 32)
        took = speed * affine(size) * math.exp(generator.gauss(0, noise))
        found.append(abs(times.predict(size) / took - 1))
        times.learn(size, took)
    return found


def test_predictions_are_within_3_percent_at_the_median_and_15_at_the_99th() -> None:
    found = sorted(errors(profiled(), 2000, speed=1.0, noise=0.03))
    assert found[1000] <= 0.03
    assert found[1980] <= 0.15


def test_a_machine_of_half_the_speed_is_known_20_batches_later() -> None:
    times = profiled()
    for size in range(1, 33):
        times.learn(size, affine(size))
    before = errors(times, 1, speed=2.0, noise=0.0)
    assert before[0] > 0.4
    errors(times, 19, speed=2.0, noise=0.0)
    found = sorted(errors(times, 21, speed=2.0, noise=0.0))
    assert found[10] <= 0.03
    assert found[20] <= 0.05


def test_sizes_are_learnt_without_a_profile() -> None:
    times = RunTimes(32)
    errors(times, 500, speed=1.0, noise=0.0)
    assert all(times.predict(size) == pytest.approx(affine(size), rel=0.15) for size in SIZES)


def test_how_sizes_compare_is_learnt_anew() -> None:
    """Measured on an idle machine, large batches seemed to cost no more."""
    times = RunTimes(32, dict.fromkeys(SIZES, 0.020))
    errors(times, 3000, speed=1.0, noise=0.0)
    assert times.predict(32) / times.predict(1) == pytest.approx(affine(32) / affine(1), rel=0.1)


def test_bound_holds_for_99_in_100_batches() -> None:
    times, generator, above = profiled(), random.Random(11), 0
    for turn in range(6000):
        took = affine(8) * math.exp(generator.gauss(0, 0.05))
        above += turn >= 1000 and took > times.bound(8)
        times.learn(8, took)
    assert 0.002 <= above / 5000 <= 0.02


def test_bound_is_the_prediction_where_every_batch_takes_what_it_should() -> None:
    times = profiled()
    for turn in range(200):
        times.learn(1 + turn % 32, affine(1 + turn % 32))
    assert times.margin == pytest.approx(1.0, abs=1e-6)


def test_one_batch_that_hung_is_not_the_rule() -> None:
    times = profiled()
    times.learn(8, affine(8))
    times.learn(8, 60.0)
    assert times.predict(8) <= 2 * affine(8)


def test_guess_is_put_right_as_a_whole_by_the_first_batch() -> None:
    times = RunTimes(32, {size: 3 * affine(size) for size in SIZES}, guessed=True)
    times.learn(8, affine(8))
    for size in SIZES:
        assert times.predict(size) == pytest.approx(affine(size))
    assert times.guessed  # the first of a shape allocates
    times.learn(8, affine(8) / 2)
    assert times.predict(32) == pytest.approx(affine(32) / 2)
    assert not times.guessed


def test_guess_from_one_batch_gives_way_to_the_next() -> None:
    times = RunTimes(32, {4: 1.0}, guessed=True)
    for _ in range(2):
        times.learn(2, 0.010)
    assert times.measured == {2: pytest.approx(0.010)}
    assert not times.guessed


# How much each measurement counts: a quarter of a change is the machine's speed, a twentieth of the rest its size


def test_batch_changes_the_speed_of_all_sizes_and_the_time_of_its_own() -> None:
    times = RunTimes(8, {1: 1.0, 8: 8.0})
    times.learn(1, 2.0)
    assert times.measured == {1: pytest.approx(2**0.25 * 2 ** (0.75 / 20)), 8: pytest.approx(8 * 2**0.25)}
    assert [times.predict(size) for size in (1, 8)] == [pytest.approx(times.measured[size]) for size in (1, 8)]


def test_batch_between_measured_sizes_changes_both_by_their_shares() -> None:
    times = RunTimes(8, {4: 1.0, 8: 2.0})
    times.learn(5, 99.0)  # the first of its size
    times.learn(5, 2.5)
    ratio = 2**0.75
    assert times.measured == {
        4: pytest.approx(2**0.25 * ratio ** (0.05 * 0.75)), 8: pytest.approx(2 * 2**0.25 * ratio ** (0.05 * 0.25)),
    }  # fmt: skip


def test_batch_between_measured_sizes_leaves_those_further_away_alone() -> None:
    times = RunTimes(16, {2: 1.0, 4: 1.0, 8: 2.0, 16: 4.0})
    times.learn(5, 99.0)
    times.learn(5, 2.5)
    assert [times.measured[size] for size in (2, 16)] == [pytest.approx(2**0.25), pytest.approx(4 * 2**0.25)]
    assert times.measured[8] > 2.001 * 2**0.25


def test_batch_that_replaced_a_guess_counts_once() -> None:
    times = RunTimes(8, {4: 1.0}, guessed=True)
    for seconds in (0.5, 0.5, 1.0):
        times.learn(2, seconds)
    assert times.measured == {2: pytest.approx(0.5 * 2**0.25 * 2 ** (0.75 / 2))}


def test_first_batches_of_a_size_count_equally() -> None:
    times = RunTimes(8)
    for seconds in (99.0, 1.0, 2.0):
        times.learn(1, seconds)
    assert times.measured == {1: pytest.approx(2**0.25 * 2 ** (0.75 / 2))}
    before = times.measured[1]
    times.learn(1, 2 * times.predict(1))
    assert times.measured == {1: pytest.approx(before * 2**0.25 * 2 ** (0.75 / 3))}


@pytest.mark.parametrize(("factor", "counted"), [(100.0, 4.0), (4.0, 4.0), (0.25, 0.25), (0.001, 0.25), (0.5, 0.5)])
def test_no_batch_counts_as_more_than_four_times_slower_or_faster(factor: float, counted: float) -> None:
    times = RunTimes(8, {1: 1.0, 8: 8.0})
    times.learn(1, factor)
    assert times.measured[8] == pytest.approx(8 * counted**0.25)


def test_powers_of_two_get_times_of_their_own_and_other_sizes_do_not() -> None:
    times = RunTimes(8, {1: 1.0, 8: 1.0})
    for size in (4, 6):
        times.learn(size, 99.0)
        times.learn(size, 1.0)
    assert set(times.measured) == {1, 4, 8}


def test_size_beyond_the_measured_ones_is_measured_without_a_change_of_speed() -> None:
    times = RunTimes(8, {1: 1.0, 2: 2.0})
    times.learn(6, 99.0)
    times.learn(6, 3.0)
    assert times.measured == {1: 1.0, 2: 2.0, 6: 3.0}
    times.learn(99, 9.0)  # as many as there may be: the first of its size
    times.learn(8, 4.0)
    assert times.measured == {1: 1.0, 2: 2.0, 6: 3.0, 8: 4.0}


def test_size_that_is_met_on_a_slower_machine_has_its_time_there() -> None:
    times = RunTimes(8, {1: 1.0})
    times.learn(1, 2.0)
    times.learn(4, 9.0)
    times.learn(4, 5.0)
    assert times.measured[4] == pytest.approx(5.0)
    assert times.predict(4) == pytest.approx(5.0)


def test_small_changes_of_a_size_add_up_before_they_count() -> None:
    times = RunTimes(8, {1: 1.0, 8: 8.0})
    times.learn(1, 1.2)  # 0.7 % besides the speed
    assert times.predict(1) == pytest.approx(1.2**0.25)
    times.learn(1, 1.2 * times.predict(1))
    assert times.predict(1) == pytest.approx(times.measured[1])
    assert times.predict(1) / times.predict(8) > 1.01 / 8


def test_margin_rises_by_ninety_nine_times_of_what_it_falls() -> None:
    times = RunTimes(8, {8: 1.0})
    times.learn(8, 1.0)
    assert times.margin == 1.0
    times.learn(8, 2.0)
    assert times.margin == pytest.approx(1 + 0.0198)
    assert times.bound(8) == pytest.approx(1.0198 * times.predict(8))
    times.learn(8, times.predict(8))
    assert times.margin == pytest.approx(1.0196)
    times.learn(8, times.bound(8))
    assert times.margin == pytest.approx(1.0194)


# Trials


def after_trials(times: RunTimes, size: int, *seconds: float) -> list[bool]:
    return [times.learn_trial(size, each) for each in seconds]


@pytest.mark.parametrize(
    ("trial", "doubted"), [((1.05,), False), ((1.06,), True), ((0.953,), False), ((0.95,), True), ((1.1, 0.9), False),
                           ((1.1, 1.0), False), ((0.9, 1.0), False), ((), False)]
)  # fmt: skip
def test_trials_contradict_from_five_percent_on_and_all_on_one_side(trial: tuple[float, ...], doubted: bool) -> None:
    times = RunTimes(8, {4: 1.0})
    after_trials(times, 4, *trial)
    assert times.in_doubt(4) == doubted


def test_median_of_five_trials_replaces_a_time_and_those_it_rules_out() -> None:
    for size, seconds, measured in (
        (4, 1.5, {1: 1.0, 2: 1.5, 4: 1.5, 8: 8.0}),
        (2, 6.0, {1: 1.0, 2: 6.0, 4: 6.0, 8: 8.0}),
    ):
        times = RunTimes(8, {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
        found = after_trials(times, size, seconds, seconds, seconds + 0.25, seconds - 0.25, seconds)
        assert found == [False] * 4 + [True]
        assert times.measured == measured
        assert times.predict(size) == seconds
        assert times.latest(size) == seconds
        assert after_trials(times, size, 7.5, 7.5, 7.5, 7.5) == [False] * 4  # five anew


def test_trials_that_have_replaced_a_time_do_not_count_again() -> None:
    times = RunTimes(8, {4: 4.0})
    assert after_trials(times, 4, 1.5, 1.4, 1.4, 1.6, 1.6)[-1]
    assert times.latest(4) == 1.5
    assert after_trials(times, 4, *[1.6] * 5) == [False] * 4 + [True]


def test_time_from_trials_counts_as_five_batches() -> None:
    times = RunTimes(8, {4: 4.0, 8: 8.0})
    after_trials(times, 4, *[1.5] * 5)
    times.learn(4, 3.0)
    assert times.measured[4] == pytest.approx(1.5 * 2**0.25 * 2 ** (0.75 / 6))


def test_latest_trial_is_seen_at_the_speed_of_today() -> None:
    times = RunTimes(8, {1: 1.0, 8: 8.0})
    assert times.latest(8) == 8.0
    times.learn(1, 2.0)
    after_trials(times, 8, 5.0, 6.0)
    assert times.latest(8) == pytest.approx(6.0)
    times.learn(1, 2 * times.predict(1))
    assert times.latest(8) == pytest.approx(6.0 * 2**0.25)


def test_trial_of_more_rows_than_there_may_be_is_one_of_the_most() -> None:
    times = RunTimes(8, {8: 8.0})
    times.learn_trial(99, 4.0)
    assert times.latest(8) == 4.0


def test_trial_before_anything_is_known_says_nothing() -> None:
    times = RunTimes(8)
    assert after_trials(times, 4, *[1.0] * 6) == [False] * 6
    assert not times.known


# Which size


@pytest.mark.parametrize(
    ("measured", "limit", "size"),
    [
        ({1: 1.0, 2: 1.0}, 8, 4),  # the largest is the best: twice as many may be better
        ({1: 1.0, 2: 1.0}, 3, 3),
        ({1: 1.0, 2: 1.0}, 2, 2),
        ({1: 1.0, 2: 1.0, 4: 2.0}, 8, 2),  # half of the largest is as good
        ({1: 1.0, 2: 1.5, 3: 2.0, 4: 3.0}, 8, 8),
        ({1: 1.0, 2: 1.5, 3: 2.0, 4: 3.0}, 4, 3),
        ({1: 1.0, 2: 1.0}, 99, 4),
        ({1: 1.0, 2: 1.9, 4: 3.99}, 4, 2),
        ({1: 1.0, 4: 4.0}, 4, 1),
    ],
)
def test_larger_sizes_are_chosen_while_they_are_better(measured: dict[int, float], limit: int, size: int) -> None:
    assert RunTimes(8, measured).efficient(limit) == size


def test_size_within_two_thousandths_of_the_best_is_enough() -> None:
    assert RunTimes(2, {1: 1.0, 2: 1.997}).efficient(2) == 1
    assert RunTimes(2, {1: 1.0, 2: 1.995}).efficient(2) == 2


def test_guess_corrected_by_a_batch_of_another_size_than_most() -> None:
    times = RunTimes(8, {4: 1.0, 8: 2.0}, guessed=True)
    times.learn(99, 4.0)
    assert times.measured == {4: 2.0, 8: 4.0}
    times.learn(4, 1.0)
    assert times.guessed  # each size allocates anew
    times.learn(8, 2.0)
    assert not times.guessed
    times.learn(8, 4.0)
    assert times.measured[8] == pytest.approx(2 * 2**0.25 * 2 ** (0.75 / 2))
