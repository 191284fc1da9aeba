"""Trials run in turns, and their ratio is what it should be."""

import os
import subprocess
import sys

import grpc
import numpy as np
import pytest

from tests.performance import load
from tests.performance.processes import Echo, cpu_seconds
from tests.performance.trials import in_turns, ratio


def test_trials_run_in_turns_behind_one_of_each_that_does_not_count() -> None:
    order: list[str] = []

    def trial(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, theirs = in_turns(lambda: trial("a"), lambda: trial("b"), 3)
    assert "".join(order) == "ababbaab"
    assert (ours, theirs) == ([3.0, 6.0, 7.0], [4.0, 5.0, 8.0])


def test_drift_that_falls_on_both_alike_is_no_difference() -> None:
    drift = iter(np.linspace(1, 2, 100))
    found = ratio(*in_turns(lambda: next(drift), lambda: next(drift), 20))
    assert found.low <= 1 <= found.high


def test_difference_is_found_with_its_interval() -> None:
    random = np.random.default_rng(3)
    found = ratio((1.3 * random.lognormal(0, 0.05, 30)).tolist(), random.lognormal(0, 0.05, 30).tolist())
    assert found.low > 1.2
    assert found.high < 1.4
    assert found.low <= found.median <= found.high


def test_cpu_time_of_children_counts() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    spin = "import time\nwhile time.process_time() < 0.4: pass\nprint('spun', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, spin], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.4 <= cpu_seconds(process.pid) < 5
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_load_counts_answers_and_errors() -> None:
    with Echo(100) as echo:
        found = load.closed(echo.target, "/echo.Echo/Echo", b"x" * 1000, 4, 50)
        assert (len(found.latencies), found.errors) == (50, [])
        timed = load.at_times(echo.target, "/echo.Echo/Echo", b"x", [0.0, 0.01, 0.02], 10.0)
        assert len(timed.latencies) == 3
        wrong = load.closed(echo.target, "/echo.Echo/Nothing", b"x", 2, 5)
        assert wrong.errors == [grpc.StatusCode.UNIMPLEMENTED] * 5


@pytest.mark.parametrize("load_", [4.0, 0.5])
def test_latency_counts_from_the_intended_time(load_: float) -> None:
    """Were it from the sending, a generator that falls behind would hide the wait."""
    with Echo(100) as echo:
        times = [-0.2 * load_] * 20  # all were due before the start
        found = load.at_times(echo.target, "/echo.Echo/Echo", b"x", times, 10.0)
    assert min(found.latencies) >= 0.2 * load_
