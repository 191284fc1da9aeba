import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.bench.findings import Histogram


def of(values):
    found = Histogram()
    for value in values:
        found.record(value)
    return found


@given(st.lists(st.floats(0, 3000), min_size=1, max_size=60), st.sampled_from([50, 90, 99, 99.9, 100]))
def test_percentile_is_the_shortest_that_enough_do_not_exceed_to_three_digits(values, percent):
    exact = sorted(values)[math.ceil(percent / 100 * len(values) - 1e-9) - 1]
    assert exact - 1e-6 <= of(values).percentile(percent) <= exact * 1.001 + 1e-6


def test_percentile_of_nothing_is_zero():
    assert of([]).percentile(99) == 0


@given(st.lists(st.lists(st.floats(0, 100), max_size=20), min_size=1, max_size=4))
def test_histograms_of_several_processes_add_up_to_the_one_of_all(parts):
    together = Histogram()
    for part in parts:
        together.add(Histogram.decode(of(part).encode()))
    whole = of([value for part in parts for value in part])
    assert together.count == whole.count
    assert all(np.array_equal(*pair) for pair in zip(together.cumulative(), whole.cumulative(), strict=True))


def test_shares_are_of_all_that_do_not_exceed_a_duration():
    seconds, shares = of([0.001, 0.001, 0.002, 0.1]).cumulative()
    assert seconds == pytest.approx([0.001, 0.002, 0.1], rel=1e-3)
    assert shares == pytest.approx([0.5, 0.75, 1.0])


def test_what_is_longer_than_an_hour_counts_as_an_hour():
    assert of([9000]).percentile(100) == pytest.approx(3600, rel=1e-3)
