import numpy as np
import pytest

from convoy.service.bench.arrivals import arrivals, gaps
from convoy.service.bench.plan import Piece


def steady(rate, seconds):
    return (Piece(seconds, rate, rate),)


@pytest.mark.parametrize(
    ("spacing", "variation", "deviation"),
    [("poisson", 2.0, 1.0), ("gamma", 0.5, 0.5), ("gamma", 1.0, 1.0), ("gamma", 4.0, 4.0), ("constant", 2.0, 0.0)],
)
def test_gaps_have_the_mean_and_the_deviation_that_they_are_asked_for(spacing, variation, deviation):
    found = gaps(np.random.default_rng(1), spacing, 200.0, variation, 400_000)
    assert found.mean() == pytest.approx(1 / 200, rel=0.03)
    assert found.std() == pytest.approx(deviation / 200, rel=0.03, abs=1e-9)
    assert found.min() >= 0


def test_gaps_of_a_gamma_with_variation_one_are_exponential():
    found = gaps(np.random.default_rng(2), "gamma", 1.0, 1.0, 200_000)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(found, share) == pytest.approx(-np.log(1 - share), rel=0.03)


@pytest.mark.parametrize("spacing", ["poisson", "gamma", "constant"])
def test_arrivals_are_ascending_within_the_time_and_the_same_for_a_seed(spacing):
    found = arrivals(steady(50, 20), spacing, 3.0, seed=1)
    assert (np.diff(found) >= 0).all()
    assert 0 <= found[0] <= found[-1] < 20
    assert np.array_equal(found, arrivals(steady(50, 20), spacing, 3.0, seed=1))
    assert spacing == "constant" or not np.array_equal(found, arrivals(steady(50, 20), spacing, 3.0, seed=2))


def test_poisson_counts_of_equal_stretches_vary_as_much_as_their_mean():
    counts, _ = np.histogram(arrivals(steady(100, 1000), "poisson", 1.0, seed=3), 1000)
    assert counts.mean() == pytest.approx(100, rel=0.02)
    assert counts.var() == pytest.approx(100, rel=0.15)


def test_gamma_counts_of_equal_stretches_vary_with_the_square_of_the_variation():
    counts, _ = np.histogram(arrivals(steady(100, 4000), "gamma", 3.0, seed=3), 4000)
    assert counts.var() / counts.mean() == pytest.approx(9, rel=0.2)


def test_constant_arrivals_are_equally_far_apart():
    assert arrivals(steady(4, 2), "constant", 1.0, seed=0) == pytest.approx([0.25 * place for place in range(1, 8)])


def test_ramp_has_the_rate_of_each_moment():
    found = arrivals((Piece(1000, 0, 200),), "poisson", 1.0, seed=4)
    counts, edges = np.histogram(found, 10)
    middles = (edges[1:] + edges[:-1]) / 2
    assert counts / 100 == pytest.approx(200 * middles / 1000, rel=0.05)


def test_ramp_of_constant_arrivals_closes_its_gaps_as_the_rate_grows():
    found = arrivals((Piece(10, 10, 30),), "constant", 1.0, seed=0)
    assert len(found) == pytest.approx(200, abs=1)
    gaps_found = np.diff(found)
    assert (np.diff(gaps_found) < 0).all()
    assert (gaps_found[0], gaps_found[-1]) == (pytest.approx(1 / 10, rel=0.03), pytest.approx(1 / 30, rel=0.03))


@pytest.mark.parametrize("spacing", ["poisson", "gamma", "constant"])
def test_steps_have_the_rate_of_each_and_none_in_a_pause(spacing):
    found = arrivals((Piece(100, 50, 50), Piece(50, 0, 0), Piece(100, 200, 200)), spacing, 2.0, seed=5)
    first, pause, last = (((found >= a) & (found < b)).sum() for a, b in ((0, 100), (100, 150), (150, 250)))
    assert first == pytest.approx(5000, rel=0.05)
    assert pause == 0
    assert last == pytest.approx(20_000, rel=0.05)
