"""Trials run in turns, and their ratio is what it should be."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.performance import load
from tests.performance.connections import resident
from tests.performance.echo import METHOD
from tests.performance.processes import Echo, cpu_seconds
from tests.performance.raw_load import ClientName, RawLoad, sending
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


def test_raw_load_counts_answers_and_errors_in_trial_after_trial() -> None:
    with Echo(100) as echo:
        with RawLoad(echo.target, METHOD, b"x" * 1000) as raw:
            for requests in (50, 20):
                found = raw.closed(4, requests)
                assert (len(found.latencies), len(found.due), found.errors) == (requests, requests, [])
                assert max(found.latencies) <= found.seconds
                assert found.last == bytes(100)
        with RawLoad(echo.target, "/echo.Echo/Nothing", b"x") as wrong:
            assert wrong.closed(2, 5).errors == [grpc.StatusCode.UNIMPLEMENTED] * 5


def sockets(pid: int) -> int:
    return sum(str(file.readlink()).startswith("socket:") for file in Path(f"/proc/{pid}/fd").iterdir())


def test_raw_load_has_as_many_connections_as_it_is_told() -> None:
    with Echo(100, kind="nghttp2") as echo:
        before = sockets(echo.process.pid)
        with RawLoad(echo.target, METHOD, b"x", connections=3) as raw:
            raw.closed(6, 60)
            assert sockets(echo.process.pid) == before + 3
            raw.open(250)
            assert sockets(echo.process.pid) == before + 253


@pytest.mark.parametrize("client", ["grpcio", "raw"])
def test_either_client_sends_what_a_trial_asks_for(client: ClientName) -> None:
    with Echo(100) as echo, sending(client, echo.target, METHOD, b"x") as send:
        assert len(send(2, 10).latencies) == 10


def test_memory_of_a_process_is_seen_to_grow() -> None:
    before = resident(os.getpid())
    with mmap.mmap(-1, 32 << 20) as fresh:  # bytes might get memory that was freed before
        untouched = resident(os.getpid())
        fresh.write(b"x" * len(fresh))
        touched = resident(os.getpid())
    assert untouched - before < 8 << 20
    assert touched - untouched > 30 << 20


@pytest.mark.parametrize("load_", [4.0, 0.5])
def test_latency_counts_from_the_intended_time(load_: float) -> None:
    """Were it from the sending, a generator that falls behind would hide the wait."""
    with Echo(100) as echo:
        times = [-0.2 * load_] * 20  # all were due before the start
        found = load.at_times(echo.target, "/echo.Echo/Echo", b"x", times, 10.0)
    assert min(found.latencies) >= 0.2 * load_
