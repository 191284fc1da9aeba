"""A run that is killed at random steps and gone on with ends as the one that nobody disturbed, to the bit."""

import csv
import random
import signal
import subprocess
import sys
from pathlib import Path

import torch

from convoy.models.training.run import RunFolder
from convoy.service import cli
from tests.models.pictures import draw

# `convoy train`, shot in the middle of its n-th step by itself: as sudden as any SIGKILL, and at a step of our choice.
SHOT = """
import os, signal, sys
from convoy.models.training.module import Training
from convoy.service.cli import run
taken, step = 0, Training.training_step
def shot(self, batch, index):
    global taken
    taken += 1
    if taken == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
Training.training_step = shot
sys.exit(run(sys.argv[2:]))
"""
# All that has a state of its own; 8 batches an epoch, the last of one image, 4 steps.
RUN = ["--epochs", "4", "--batch-size", "4", "--accumulate", "2", "--ema", "0.9", "--clip", "0.5", "--keep", "2"]
RUN += ["--schedule", "one-cycle", "--mixup", "0.3", "--rotate", "20", "--optimizer", "sgd", "--lr", "0.02"]


BATCHES = 8


def shot_at(step: int, *arguments: str) -> None:
    process = subprocess.run([sys.executable, "-c", SHOT, str(step), *arguments], check=False, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


def state(path: Path) -> dict[str, object]:
    content: dict[str, object] = torch.load(path, weights_only=True)
    return {name: content[name] for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")}


def batches_taken(path: Path) -> int:
    """Of the epoch that the checkpoint is in."""
    taken: int = torch.load(path, weights_only=True)["taken"]["taken"]
    return taken


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def logged(root: Path) -> list[tuple[str, str, str, str]]:
    rows = []
    for path in sorted(root.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            rows += [
                (row["step"], row.get("loss", ""), row.get("train_loss", ""), row.get("validation_loss", ""))
                for row in csv.DictReader(file)
            ]
    return rows


def test_run_killed_at_random_steps_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    data = draw(tmp_path / "pictures")
    train = ["train", "lenet5", "--data", str(data), *RUN]
    assert cli.run([*train, "--output", str(tmp_path / "whole")]) == 0
    whole = RunFolder(tmp_path / "whole")

    chance = random.Random(11)
    killed = RunFolder(tmp_path / "killed")
    # Behind the first step of an epoch, before its last: in the first, and in the second or the third.
    shot_at(chance.randrange(4, BATCHES), *train, "--output", str(killed.root), "--save-every", "0")
    assert 0 < batches_taken(killed.last) < BATCHES
    left = BATCHES - batches_taken(killed.last)
    later = left + chance.randrange(2) * BATCHES + chance.randrange(4, BATCHES)
    shot_at(later, "train", "--resume", str(killed.last), "--save-every", "0")
    assert 0 < batches_taken(killed.last) < BATCHES
    assert torch.load(killed.last, weights_only=True)["epoch"] in (1, 2)
    # Saved seldom: what was done since is done again.
    shot_at(chance.randrange(3, 6), "train", "--resume", str(killed.last), "--save-every", "1000")
    assert not same(state(killed.last), state(whole.last))
    assert cli.run(["train", "--resume", str(killed.last)]) == 0

    assert same(state(killed.last), state(whole.last))
    assert same(state(killed.best), state(whole.best))
    names = sorted(path.name for path in whole.kept.iterdir())
    assert len(names) == 2
    assert sorted(path.name for path in killed.kept.iterdir()) == names
    first, second = killed.read(), whole.read()
    assert first is not None
    assert second is not None
    assert first.validation == second.validation
    assert logged(killed.root) == logged(whole.root)  # each step once, though some were taken twice
