"""Runs that never end are found, long ones are left alone."""

import pytest

from convoy.service.engine.run_watch import RunWatch
from convoy.service.engine.scheduler.batcher import Batch
from convoy.service.engine.scheduler.request_queue import Key

STEP = 0.25


def batch(seconds: float) -> Batch:
    return Batch(Key("letters", 1, ()), [], 0.0, 1.0, seconds)


def found_after(watch: RunWatch, *running: Batch, most: float = 200.0, step: float = STEP) -> float | None:
    for look in range(round(most / step)):
        if watch.hung(running, 10_000 + look * step) is not None:
            return look * step
    return None


@pytest.mark.parametrize(("predicted", "wanted"), [(0.001, 3.25), (2.0, 20.25), (0.0, 60.25)])
def test_run_hangs_after_ten_times_its_predicted_time_but_not_early(predicted: float, wanted: float) -> None:
    assert found_after(RunWatch(3.0, 60.0), batch(predicted)) == wanted


def test_runs_that_follow_each_other_do_not_hang() -> None:
    watch = RunWatch(3.0, 60.0)
    assert not any(watch.hung([batch(0.1)], 0.25 * look) for look in range(1000))


def test_pause_of_the_whole_machine_does_not_count() -> None:
    watch, running = RunWatch(3.0, 60.0), batch(0.1)
    assert watch.hung([running], 10.0) is None
    assert watch.hung([running], 5000.0) is None
    assert found_after(watch, running) is not None


def test_run_that_hangs_beside_others_is_found() -> None:
    watch, hanging = RunWatch(3.0, 60.0), batch(0.1)
    found = [watch.hung([batch(0.1), hanging], STEP * look) for look in range(20)]
    assert next(each for each in found if each is not None)[0] is hanging


def test_without_a_limit_nothing_hangs() -> None:
    assert found_after(RunWatch(0.0, 0.0), batch(0.1), batch(0.0)) is None
