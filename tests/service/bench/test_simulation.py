"""The scheduler on a virtual clock: what it reaches of the best, beside the other policies."""

import math
from dataclasses import replace

import numpy as np
import pytest

from convoy.service.bench.simulation import Load, Outcome, Stream, oracle, simulate
from convoy.service.config import PolicyName
from convoy.service.engine.scheduler.request_queue import Limits

OBJECTIVE = 0.1
LIMITS = Limits(max_batch_size=64, max_queue_delay=0.005, max_queue=100_000, objective=OBJECTIVE)


def affine(size: int) -> float:
    """Seconds of a batch on a GPU of the literature: 1.082 ms an image and 5.204 ms around them."""
    return 0.001082 * size + 0.005204


GPU = {size: affine(size) for size in (1, 2, 4, 8, 16, 32, 64)}
BEST = oracle(affine, 64, OBJECTIVE)


def stream(
    load: float,
    kind: Load = "poisson",
    variation: float = 1.0,
    policy: PolicyName = "deferred",
    deadline: float = OBJECTIVE,
    name: str = "model",
) -> Stream:
    """Requests at that share of the oracle's rate."""
    return Stream(name, GPU, replace(LIMITS, policy=policy), deadline, load * BEST, kind, variation)


def outcome(*streams: Stream, requests: int = 40_000, seed: int = 3, jitter: float = 0.0) -> Outcome:
    (found, *_) = simulate(streams, requests, seed, jitter=jitter)
    return found


def check(found: Outcome) -> None:
    """Every request ended in exactly one way."""
    assert found.offered == found.in_time + found.late + found.refused + found.dropped
    assert found.in_time + found.late == len(found.latencies)
    assert sum(size * count for size, count in found.batches.items()) == len(found.latencies)


def test_arrivals_ascend_without_end_and_are_the_same_for_a_seed() -> None:
    one, again = stream(1.0).arrivals(5), stream(1.0).arrivals(5)
    times = [next(one) for _ in range(100_000)]
    assert times == sorted(times)
    assert times == [next(again) for _ in range(100_000)]
    assert times[-1] == pytest.approx(100_000 / BEST, rel=0.02)


def test_oracle_is_the_rate_of_full_batches_that_run_back_to_back() -> None:
    # 41 images take 49.6 ms: whoever just missed one batch is answered by the next one 99.1 ms later.
    assert oracle(affine, 64, OBJECTIVE) == pytest.approx(41 / affine(41))
    assert oracle(affine, 64, OBJECTIVE, devices=4) > 4 * oracle(affine, 64, OBJECTIVE)
    assert oracle(affine, 8, OBJECTIVE) == pytest.approx(8 / affine(8))
    assert oracle(affine, 64, 0.001) == 0.0


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_all_requests_are_answered_in_time_where_there_is_room(load: float) -> None:
    found = outcome(stream(load))
    check(found)
    assert found.in_time == found.offered


@pytest.mark.parametrize("load", [1.0, 2.0, 5.0, 10.0])
def test_goodput_stays_at_97_percent_of_the_oracle_under_overload(load: float) -> None:
    found = outcome(stream(load))
    check(found)
    assert found.goodput >= 0.97 * BEST


def test_few_requests_bring_no_more_than_the_oracle() -> None:
    found = outcome(stream(4.0), requests=1000)
    assert found.seconds < 5 * OBJECTIVE  # what is answered behind it counts for much
    assert 0.5 * BEST < found.goodput <= 1.01 * BEST


@pytest.mark.parametrize("load", [2.0, 5.0])
def test_goodput_under_bursts_stays_at_90_percent_of_the_oracle(load: float) -> None:
    found = outcome(stream(load, "gamma", 4.0))
    check(found)
    assert found.goodput >= 0.90 * BEST


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("gamma", 2.0), ("gamma", 4.0)])
@pytest.mark.parametrize("load", [0.8, 1.0, 3.0])
def test_who_is_admitted_is_answered_in_time(load: float, kind: Load, variation: float) -> None:
    found = outcome(stream(load, kind, variation))
    assert found.late == 0
    assert found.dropped <= 0.001 * (found.offered - found.refused)


def test_999_of_1000_admitted_are_answered_in_time_on_a_device_that_varies() -> None:
    found = outcome(stream(3.0), jitter=0.02)
    assert found.late + found.dropped <= 0.001 * (found.offered - found.refused)
    assert found.goodput >= 0.90 * BEST


@pytest.mark.parametrize(
    ("kind", "variation", "load"), [("poisson", 1.0, 0.95), ("poisson", 1.0, 3.0), ("gamma", 4.0, 3.0)]
)
@pytest.mark.parametrize("policy", ["eager", "timeout", "aimd", "nexus"])
def test_no_other_policy_has_a_higher_goodput(policy: PolicyName, kind: Load, variation: float, load: float) -> None:
    ours, theirs = outcome(stream(load, kind, variation)), outcome(stream(load, kind, variation, policy))
    check(theirs)
    assert ours.goodput >= 0.99 * theirs.goodput


def test_policies_without_admission_break_down_under_overload() -> None:
    """What the tests above measure can be missed by far."""
    assert outcome(stream(2.0, policy="eager")).goodput < 0.1 * BEST


def test_lone_requests_take_as_long_as_one_image() -> None:
    found = outcome(stream(0.01), requests=2000)
    assert np.quantile(found.latencies, 0.5) == pytest.approx(affine(1))


def test_two_models_share_a_device_and_both_keep_their_deadlines() -> None:
    streams = [stream(0.4, name="short", deadline=0.1), stream(0.4, name="long", deadline=0.3)]
    found = simulate(streams, 40_000, seed=1)
    for one in found:
        check(one)
        assert one.late + one.dropped == 0
        assert one.in_time >= 0.99 * one.offered


def test_goodput_comes_back_behind_a_stall() -> None:
    """For half a second the device takes ten times as long."""

    def speed(now: float) -> float:
        return 10.0 if 5.0 <= now < 5.5 else 1.0

    (found,) = simulate([stream(0.8)], 20_000, seed=2, speed=speed)
    check(found)
    assert found.in_time >= 0.9 * found.offered


def test_requests_without_a_deadline_are_all_answered() -> None:
    found = outcome(stream(0.9, deadline=math.inf))
    assert len(found.latencies) == found.offered
    assert found.refused == found.dropped == 0


def test_same_seed_gives_the_same_outcome() -> None:
    assert outcome(stream(1.0), requests=5000) == outcome(stream(1.0), requests=5000)
    assert outcome(stream(1.0), requests=5000) != outcome(stream(1.0), requests=5000, seed=4)
