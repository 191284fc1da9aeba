"""Several processes that train together take the steps that one takes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from torch import Tensor

from convoy.models.errors import BadTraining
from convoy.models.settings import Loss, Recipe
from convoy.models.training import train as training
from convoy.models.training.distributed import explained, report_lost_processes
from convoy.models.training.losses import LOSSES, loss
from convoy.models.training.run import Machine, RunFolder
from convoy.models.training.train import trainer_options
from convoy.service import cli
from tests.models.conftest import settings, untrained
from tests.models.pictures import draw
from tools.ports import free_ports

CONVOY = [str(Path(sys.executable).with_name("convoy"))]
# 31 images: the last batch of an epoch is one image, so that a process is without. What is drawn for a whole batch
# (mixup), for an image (rotate), and a loss whose mean goes over weights are all among it.
RUN = ["--epochs", "6", "--batch-size", "5", "--mixup", "0.3", "--rotate", "20", "--class-weights", "balanced"]
RUN += ["--lr", "0.01", "--ema", "0.9", "--clip", "1"]


def logged(root: Path) -> list[dict[str, float]]:
    """Each row of the log, but for what the clock decides on."""
    with (root / "csv" / "version_0" / "metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and name not in ("images_per_second",)}
            for row in csv.DictReader(file)
        ]


def start(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, check=False, capture_output=True, text=True, env=environment, timeout=200)


@pytest.mark.timeout(600)
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    train = ["train", "lenet5", "--data", str(draw(tmp_path / "pictures")), *RUN]
    assert cli.run([*train, "--output", str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", *CONVOY]
    ways = {"devices": [*CONVOY, *train, "--devices", "2"], "torchrun": [*torchrun, *train]}
    one = logged(tmp_path / "one")
    assert len([row for row in one if "loss" in row]) == 4  # of 42 steps
    assert len([row for row in one if "train_loss" in row]) == 6
    for name, arguments in ways.items():
        ended = start([*arguments, "--output", str(tmp_path / name)])
        assert ended.returncode == 0, ended.stderr
        rows = logged(tmp_path / name)
        assert len(rows) == len(one)
        for row, wanted in zip(rows, one, strict=True):
            row["waiting_for_data"] = wanted["waiting_for_data"] = 0.0
            assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        # From what is noted of it one process trains the same.
        assert (tmp_path / name / "report.html").is_file()
        assert (tmp_path / name / "config.toml").read_text() == (tmp_path / "one" / "config.toml").read_text()
        # The first process alone prints and writes.
        assert ended.stdout.count("checkpoint  ") == 1
        assert ended.stderr.count("epoch 1/6") == 1
        assert not (tmp_path / name / "csv" / "version_1").exists()
        first, second = (torch.load(RunFolder(tmp_path / way).last, weights_only=True) for way in ("one", name))
        for key, value in first["state_dict"].items():
            torch.testing.assert_close(second["state_dict"][key], value, rtol=1e-3, atol=1e-5)


def test_body_that_is_frozen_for_an_epoch_is_trained_by_two_hosts_as_by_one_process(tmp_path: Path) -> None:
    train = ["train", "lenet5", "--data", str(draw(tmp_path / "pictures")), "--epochs", "2", "--batch-size", "5"]
    train += ["--from", str(untrained(tmp_path)), "--freeze-epochs", "1", "--optimizer", "sgd", "--body-rate", "0.5"]
    assert cli.run([*train, "--output", str(tmp_path / "one")]) == 0
    (port,) = free_ports(1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port), "--no-python"]
    two = [*CONVOY, *train, "--output", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    hosts = [
        subprocess.Popen(
            [*torchrun, "--node-rank", rank, *two],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in "01"
    ]
    ended = [host.communicate(timeout=200) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], ended
    assert [out.count("checkpoint  ") for out, _ in ended] == [1, 0]
    for row, wanted in zip(logged(tmp_path / "two"), logged(tmp_path / "one"), strict=True):
        row["waiting_for_data"] = wanted["waiting_for_data"] = 0.0
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    first, second = (torch.load(RunFolder(tmp_path / way).last, weights_only=True) for way in ("one", "two"))
    for key, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 4.0])])
def test_loss_of_parts_is_the_loss_of_the_whole(name: Loss, weights: Tensor | None) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (5, 4, 4))
    targets[0, :2], targets[4] = 255, 255  # parts with less to count than others, and one with nothing
    whole = loss(name, 2.0, 255, weights)(logits, targets)
    sums: list[Tensor] = []
    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]

    def noted(own: Tensor) -> Tensor:
        sums.append(own)
        return own

    for part in parts:
        loss(name, 2.0, 255, weights, noted)(logits[part], targets[part])
    terms = len(sums) // len(parts)
    totals = [torch.stack(sums[term::terms]).sum(0) for term in range(terms)]
    found = []
    for part in parts:
        left = list(totals)
        found.append(loss(name, 2.0, 255, weights, lambda _, left=left: left.pop(0))(logits[part], targets[part]))
    for each in found:
        torch.testing.assert_close(each, whole)
    # What training goes along is the gradient of any of them, through all the parts.
    (wanted,) = torch.autograd.grad(whole, logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(found[0], logits)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what is refused elsewhere")
def test_sixteen_bits_without_cuda_are_refused_in_words() -> None:
    with pytest.raises(BadTraining, match="precision 16-mixed: there is no CUDA device here, want bf16-mixed or 32"):
        trainer_options(Recipe(epochs=1, precision="16-mixed"), Machine())


OUTSIDE = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "not enough memory for batches of 8",
    ),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        "not enough memory for batches of",
    ),
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
    assert hint == f"ended unexpectedly; resume with:  convoy train --resume {tmp_path / 'last.ckpt'}"
    assert line.startswith(f"convoy train: {said}")
    note = RunFolder(tmp_path).read()
    assert note is not None
    assert not note.complete


def test_process_that_has_gone_is_told_before_all_of_the_run_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    report_lost_processes()
    for code, told in ((0, 0), (3, 1)):
        child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        child.wait()
        assert _ChildProcessObserver(os.getpid(), [child])._run()
        assert capsys.readouterr().err.count("a process of this run died") == told
    assert killed == [os.getpid()]


def test_crop_is_advised_where_there_is_one() -> None:
    recipe = settings("unet", "tiny-scenes", crop=64).recipe
    assert "--crop below 64" in str(explained(torch.OutOfMemoryError("out of memory"), recipe))


def test_other_errors_are_left_alone() -> None:
    assert explained(RuntimeError("The size of tensor a (3) must match b (4)"), settings().recipe) is None
