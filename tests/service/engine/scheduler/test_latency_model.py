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
    assert times.predict(8) == times.bound(8) == 0.0
    assert times.largest_within(0.001) == times.efficient(32) == 32


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
