import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from convoy.service.bench import findings, fleet
from convoy.service.bench.fleet import ClientFailed
from convoy.service.bench.plan import InputTensor, Open, Piece, Plan, Share, TensorModel
from tests import processes
from tests.service.fake_inference import FakeInference, serving


def plan(target, processes, rate=100.0, seconds=0.5):
    inputs = (InputTensor(name="x", datatype="FP32", shapes=((1, 4),), rows=True),)
    return Plan(
        server=target,
        models=(TensorModel(model="net", version="", weight=1.0, inputs=inputs),),
        load=Open((Piece(seconds, rate, rate),), "constant", 1.0),
        warm_up=0.1,
        batch=1,
        deadline=2.0,
        seed=0,
        processes=processes,
        folder=None,
        sizes=(),
    )


@pytest.fixture
def target():
    with serving(FakeInference(("x", "FP32", (-1, 4)))) as target:
        yield target


def children():
    return set(processes.children(os.getpid()))


def test_processes_share_the_requests_and_are_gone_afterwards(target):
    before = children()
    found = fleet.run(plan(target, processes=2))
    requests = sum(tally.requests for tally in found.cells[0])
    assert requests == pytest.approx(50, abs=1)
    assert len(found.cores) == 2
    assert children() <= before


@pytest.mark.parametrize("which", [min, max])
def test_process_that_dies_ends_the_load_at_once_with_an_error_and_leaves_no_other_behind(which):
    before = children()

    class Killer(FakeInference):
        """Ends one of its callers when it is asked for the first time."""

        killed = 0.0

        def infer(self, request, context):
            if not self.requests:
                self.killed = time.monotonic()
                os.kill(which(children() - before), signal.SIGKILL)
            return super().infer(request, context)

    killer = Killer(("x", "FP32", (-1, 4)))
    with (
        serving(killer) as target,
        pytest.raises(ClientFailed, match=r"client process \d+ ended with exit code -9, without findings"),
    ):
        fleet.run(plan(target, processes=2, seconds=60))
    assert killer.requests
    assert time.monotonic() - killer.killed < 40
    assert children() <= before


def start(share):
    process = subprocess.Popen(
        [sys.executable, "-m", "convoy.service.bench.client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdin.write(msgspec.json.encode(share) + b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n"
    return process


def test_process_begins_when_it_is_told_and_answers_its_findings(target):
    with start(Share(plan(target, processes=5), 3)) as process:
        process.stdin.write(msgspec.json.encode(time.monotonic()) + b"\n")
        process.stdin.flush()
        found = findings.decode(process.stdout.readline())
        assert process.wait(40) == 0
    assert sum(tally.requests for tally in found.cells[0]) == 10  # a fifth of 50


@pytest.mark.parametrize("begun", [False, True])
def test_process_whose_parent_goes_ends_before_its_load_does(target, begun):
    with start(Share(plan(target, processes=1, seconds=60), 0)) as process:
        if begun:
            process.stdin.write(msgspec.json.encode(time.monotonic()) + b"\n")
        process.stdin.close()
        assert process.wait(40) == 1
