"""Training: reproducible, resumable, stops early, and leaves checkpoints that say all about themselves."""

import csv
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convoy.models import checkpoint, runtime
from convoy.models.data.dataset import Split, SplitName, Target
from convoy.models.data.registry import DATA, data_set
from convoy.models.errors import BadCheckpoint, BadTraining
from convoy.models.training.run import RunFolder, default_settings
from convoy.models.training.train import train
from tests.models.conftest import settings, untrained

KEPT_SHARE = "convoy.models.training.train.KEPT_SHARE"


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_loss_falls_and_the_note_tells_of_the_run(tmp_path: Path) -> None:
    wanted = settings(epochs=3, learning_rate=3e-3)
    begin = time.monotonic()
    note = train(wanted, tmp_path)
    took = time.monotonic() - begin
    assert note == RunFolder(tmp_path).read()
    assert note.complete
    assert note.settings == wanted
    assert note.epochs == 3
    assert 0 < note.seconds <= took + 0.001  # it is rounded to milliseconds
    assert set(note.validation) == {"validation_loss", "validation_top1", "validation_top5"}
    losses = logged(tmp_path, "train_loss")
    assert losses[-1] < losses[0]


def logged(folder: Path, column: str) -> list[float]:
    values = []
    for file in sorted(folder.glob("csv/version_*/metrics.csv")):
        with file.open() as rows:
            values += [float(row[column]) for row in csv.DictReader(rows) if row.get(column)]
    return values


def test_logs_are_written_as_csv_and_for_tensorboard(tmp_path: Path) -> None:
    train(settings(), tmp_path)
    assert len(logged(tmp_path, "validation_top1")) == 2
    assert list(tmp_path.glob("tensorboard/version_0/events.out.tfevents.*"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_trains(tmp_path: Path, optimizer: str) -> None:
    train(settings(optimizer=optimizer, learning_rate=1e-2), tmp_path)
    losses = logged(tmp_path, "train_loss")
    assert losses[-1] < losses[0]


def test_optimizers_differ(tmp_path: Path) -> None:
    train(settings(epochs=1, optimizer="sgd"), tmp_path / "sgd")
    train(settings(epochs=1, optimizer="adamw"), tmp_path / "adamw")
    assert not same(tmp_path / "sgd" / "last.ckpt", tmp_path / "adamw" / "last.ckpt")


def test_same_seed_gives_the_same_network_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        train(settings(seed=seed, epochs=1), tmp_path / name)
    one, two, three = (tmp_path / name / "last.ckpt" for name in ("one", "two", "three"))
    assert same(one, two)
    assert not same(one, three)


def test_images_come_in_another_order_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    data = data_set("tiny-digits")

    def split(which: SplitName) -> Split:
        return Recording(data.split(which), seen) if which == "train" else data.split(which)

    monkeypatch.setitem(DATA, "tiny-digits", lambda: replace(data, split=split))
    monkeypatch.setattr(KEPT_SHARE, 0)
    train(settings(epochs=2), tmp_path)
    first, second = seen[:96], seen[96:]
    assert sorted(first) == sorted(second) == list(range(96))
    assert first != second


class Recording:
    """A split that notes which images are asked for."""

    def __init__(self, split: Split, seen: list[int]) -> None:
        self.split, self.seen = split, seen

    def __len__(self) -> int:
        return len(self.split)

    def size(self, index: int) -> tuple[int, int]:
        return self.split.size(index)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        self.seen.append(index)
        return self.split[index]


class Interrupting:
    """A split whose user presses Ctrl-C at the n-th image."""

    def __init__(self, split: Split, images: int) -> None:
        self.split, self.left = split, images

    def __len__(self) -> int:
        return len(self.split)

    def size(self, index: int) -> tuple[int, int]:
        return self.split.size(index)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.split[index]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, name: str, images: int) -> None:
    data = data_set(name)

    def split(which: SplitName) -> Split:
        return Interrupting(data.split(which), images) if which == "train" else data.split(which)

    monkeypatch.setitem(DATA, name, lambda: replace(data, split=split))
    monkeypatch.setattr(KEPT_SHARE, 0)  # every epoch reads each image


@pytest.mark.parametrize(("architecture", "data"), [("lenet5", "tiny-digits"), ("unet", "tiny-scenes")])
def test_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, data: str
) -> None:
    wanted = settings(architecture, data, epochs=4)
    whole = train(wanted, tmp_path / "whole")

    with monkeypatch.context() as patch:
        interrupt_after(patch, data, images=96 * 2 + 40)  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            train(wanted, tmp_path / "halves")
    halves = RunFolder(tmp_path / "halves")
    stopped = halves.read()
    assert stopped is not None
    assert not stopped.complete
    assert not same(halves.last, tmp_path / "whole" / "last.ckpt")

    resumed = train(wanted, halves.root, resume=halves.last)
    assert resumed.complete
    assert resumed.validation == whole.validation
    assert resumed.seconds > stopped.seconds
    assert same(halves.last, tmp_path / "whole" / "last.ckpt")
    assert len(logged(halves.root, "validation_loss")) == 4  # the log of the first half is still there


def test_last_checkpoint_is_of_the_last_epoch_also_when_another_was_better(tmp_path: Path) -> None:
    train(settings("unet", "tiny-scenes", epochs=3), tmp_path)
    losses = logged(tmp_path, "validation_loss")
    assert min(losses) < losses[-1]  # else this shows nothing
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == losses.index(min(losses))


def test_training_stops_early_without_progress(tmp_path: Path) -> None:
    note = train(settings(epochs=30, learning_rate=0.0, weight_decay=0.0, patience=2), tmp_path)
    assert note.complete
    assert note.epochs == 3  # the first, and two that were no better
    assert note.checkpoint == "best.ckpt"


def test_epoch_with_the_lowest_loss_is_used_and_before_the_first_one_the_last_step(tmp_path: Path) -> None:
    note = train(settings("unet", "tiny-scenes", epochs=3), tmp_path)
    losses, folder = logged(tmp_path, "validation_loss"), RunFolder(tmp_path)
    assert min(losses) < losses[-1]  # else this shows nothing
    assert (note.epochs, note.checkpoint) == (3, "best.ckpt")
    assert note.validation["validation_loss"] == pytest.approx(min(losses))
    assert folder.chosen() == folder.best
    folder.best.unlink()
    assert folder.chosen() == folder.last


def test_checkpoint_says_all_that_is_needed_in_plain_values(tmp_path: Path) -> None:
    train(settings("unet", "tiny-scenes", epochs=1), tmp_path)
    for path in (tmp_path / "best.ckpt", tmp_path / "last.ckpt"):
        content = torch.load(path, weights_only=True)  # refuses anything but plain values and tensors
        assert content["convoy"]["architecture"] == "unet"
        description, network = checkpoint.load(path)
        assert description.arguments == {"width": 4, "depth": 2}
        assert (description.data, description.task) == ("tiny-scenes", "segmentation")
        assert (description.input.colour, description.input.multiple, description.input.fit) == ("RGB", 4, "pad")
        assert description.labels == ["background", *"0123456789"]
        assert description.palette is not None
        assert not network.training
        assert network(torch.zeros(1, 3, 16, 24)).shape == (1, 11, 16, 24)


def test_checkpoint_rebuilds_the_trained_weights(tmp_path: Path) -> None:
    train(settings(epochs=1), tmp_path)
    _, network = checkpoint.load(tmp_path / "last.ckpt")
    saved = weights(tmp_path / "last.ckpt")
    assert network.state_dict().keys() == {name.removeprefix("network.") for name in saved if "network." in name}
    assert all(torch.equal(value, saved[f"network.{name}"]) for name, value in network.state_dict().items())


def test_second_run_replaces_the_first(tmp_path: Path) -> None:
    train(settings(epochs=1, seed=1), tmp_path)
    train(settings(epochs=1, seed=2), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    train(settings(epochs=1, seed=2), tmp_path / "alone")
    assert same(tmp_path / "last.ckpt", tmp_path / "alone" / "last.ckpt")


def test_architecture_and_data_of_different_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTraining, match="unet is for segmentation, tiny-digits is data for classification"):
        train(settings("unet", "tiny-digits"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_from_another_architecture_is_refused(tmp_path: Path) -> None:
    other = untrained(tmp_path, "unet", "tiny-scenes")
    with pytest.raises(BadTraining, match="was trained with architecture 'unet', this run has 'lenet5'"):
        train(settings(), tmp_path / "run", resume=other)


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, why in (
        ("none", "there is no checkpoint"),
        ("text", "is not a checkpoint, want a .ckpt file"),
        ("foreign", "not a"),
        ("list", "list"),
    ):
        with pytest.raises(BadCheckpoint, match=why) as caught:
            checkpoint.load(tmp_path / f"{name}.ckpt")
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(("multiply_adds", "expected"), [(0, 1), (13_000_000, 1), (250_000_000, 2), (10**12, 8)])
def test_small_networks_train_with_one_thread(
    monkeypatch: pytest.MonkeyPatch, multiply_adds: int, expected: int
) -> None:
    monkeypatch.setattr("convoy.models.runtime.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime.limit_threads(most=runtime.useful_threads(multiply_adds))
    assert torch.get_num_threads() == expected


def test_resumed_run_has_the_threads_of_its_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.models.runtime.cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("convoy.models.runtime.MULTIPLY_ADDS_PER_THREAD", 1)
    train(settings(epochs=1), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["threads"] == 2
    monkeypatch.setattr("convoy.models.runtime.MULTIPLY_ADDS_PER_THREAD", 10**9)
    train(settings(epochs=1), tmp_path / "new")
    assert torch.get_num_threads() == 1
    train(settings(epochs=2), tmp_path, resume=tmp_path / "last.ckpt")
    assert torch.get_num_threads() == 2


def test_loss_that_is_worse_than_guessing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(settings(epochs=1, learning_rate=100.0), tmp_path / "steep")
    assert "the network has learned nothing: its validation loss is " in capsys.readouterr().err
    train(settings(epochs=1), tmp_path / "gentle")
    assert "learned nothing" not in capsys.readouterr().err


def test_run_counts_as_finished_only_with_the_same_settings_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, folder = settings(epochs=1), RunFolder(tmp_path)
    assert not folder.finished(wanted)
    note = train(wanted, tmp_path)
    assert folder.finished(wanted)
    assert not folder.finished(settings(epochs=1, seed=1))
    assert not folder.finished(settings(epochs=2))
    folder.write(msgspec.structs.replace(note, complete=False))
    assert not folder.finished(wanted)
    folder.write(note)
    monkeypatch.setattr("convoy.models.training.run.source_digest", lambda _: "another source")
    assert not folder.finished(wanted)
    monkeypatch.undo()
    folder.chosen().unlink()
    assert not folder.finished(wanted)


def test_default_settings_are_the_recipe_of_the_architecture() -> None:
    wanted = default_settings("unet", "digit-scenes")
    assert wanted.arguments == {"width": 16, "depth": 3}
    assert wanted.recipe.epochs > 1


def test_lines_on_stderr_are_one_an_epoch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A paused step makes the run look long, and a long run gets one more line: its estimated time.
    monkeypatch.setattr("convoy.models.training.progress.SHORT_RUN_SECONDS", math.inf)
    train(settings(epochs=2), tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2, captured.err
    assert re.match(
        r"epoch 1/2  loss \d\.\d+  validation \d\.\d+  top1 \d\.\d+  \d+ images/s$",
        lines[0],
    )


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [(1, "max 100000", 1), (8, "max 100000", 8), (8, "300000 100000", 3), (8, "20000 100000", 1), (64, "", 16)],
)
def test_torch_uses_no_more_threads_than_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, quota: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr("convoy.service.machine._GROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime.limit_threads()
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(("asked", "expected"), [("3", 3), ("64", 8), ("0", 8), ("4,2", 8), ("many", 8), ("", 8)])
def test_torch_keeps_to_the_threads_that_the_job_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, expected: int
) -> None:
    monkeypatch.setattr("convoy.service.machine._GROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    runtime.limit_threads()
    assert torch.get_num_threads() == expected
