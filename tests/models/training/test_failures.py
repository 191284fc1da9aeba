"""What ends a run from outside is one line with what to do; what is a fault of ours stays what it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from convoy.models.training import train as training
from convoy.models.training.failures import in_words, tell_of_lost_processes
from convoy.models.training.run import RunFolder
from convoy.service import cli
from tests.models.conftest import settings

OUTSIDE = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "memory is not enough for batches of 8",
    ),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "memory is not"),
    (RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3"), "another process of"),
    (torch.distributed.DistBackendError("watchdog timed out"), "another process of this run has ended"),
]


@pytest.mark.parametrize(("error", "said"), OUTSIDE, ids=[said for _, said in OUTSIDE])
def test_run_that_is_ended_from_outside_says_why_and_can_be_gone_on_with(
    error: RuntimeError,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "lenet5", "--data", "tiny-digits", "--batch-size", "8", "--output", str(tmp_path)]
    assert cli.run([*command, "--epochs", "1"]) == 0
    capsys.readouterr()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training, "fit", fail)
    assert cli.run([*command, "--epochs", "2", "--resume", str(tmp_path)]) == 2
    hint, line = capsys.readouterr().err.splitlines()
    assert hint == f"ended before its time; go on with:  convoy train --resume {tmp_path / 'last.ckpt'}"
    assert line.startswith(f"convoy train: {said}")
    note = RunFolder(tmp_path).read()
    assert note is not None
    assert not note.complete


def test_process_that_has_gone_is_told_before_all_of_the_run_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    tell_of_lost_processes()
    for code, told in ((0, 0), (3, 1)):
        child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        child.wait()
        assert _ChildProcessObserver(os.getpid(), [child])._run()
        assert capsys.readouterr().err.count("a process of this run has ended before its time") == told
    assert killed == [os.getpid()]


def test_crop_is_advised_where_there_is_one() -> None:
    recipe = settings("unet", "tiny-scenes", crop=64).recipe
    assert "--crop below 64" in str(in_words(torch.OutOfMemoryError("out of memory"), recipe))


def test_other_errors_are_left_alone() -> None:
    assert in_words(RuntimeError("The size of tensor a (3) must match b (4)"), settings().recipe) is None
