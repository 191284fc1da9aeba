"""What a recipe may ask for besides an optimizer: averages, steps of several batches, clipping, several checkpoints."""

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from convoy.models import checkpoint
from convoy.models.data.registry import data_set
from convoy.models.errors import BadTraining
from convoy.models.training import run
from convoy.models.training.checkpointing import averaging
from convoy.models.training.module import Training
from convoy.models.training.run import RunFolder, Transfer
from convoy.models.training.train import describe, train, validation_batches
from convoy.service import cli
from tests.models.conftest import settings
from tests.models.pictures import draw


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_averaged_weights_are_validated_and_checkpointed(tmp_path: Path) -> None:
    note = train(settings(epochs=2, ema=0.9), tmp_path / "averaged")
    content = torch.load(tmp_path / "averaged" / "last.ckpt", weights_only=True)
    train(settings(epochs=2), tmp_path / "plain")
    plain = torch.load(tmp_path / "plain" / "last.ckpt", weights_only=True)
    name = "network.c1.weight"
    assert torch.equal(content["current_model_state"][name], plain["state_dict"][name])
    assert not torch.equal(content["state_dict"][name], plain["state_dict"][name])
    # The validation of the note is that of the network in the checkpoint.
    _, network = checkpoint.load(tmp_path / "averaged" / "last.ckpt")
    assert validation_loss(network) == pytest.approx(note.validation["validation_loss"], rel=1e-5)


def validation_loss(network: nn.Module) -> float:
    asked, data = settings(), data_set("tiny-digits")
    training = Training(*describe(asked, data), data, asked)
    split = data.split("validation")
    with torch.inference_mode():
        losses = [
            (training.loss(network(training.normalise(images)), targets), len(targets))
            for images, targets in validation_batches(training.description, data, asked)
        ]
    return float(sum(loss * count for loss, count in losses)) / len(split)


def test_average_is_the_moving_one_and_remembers_little_at_first() -> None:
    average = averaging(0.9)._kwargs["avg_fn"]
    assert average(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(1000)) == pytest.approx(1.1)
    assert average(torch.tensor(1.0), torch.tensor(2.0), 0) == pytest.approx(1.9)
    constant = torch.rand(100)
    assert torch.equal(average(constant, constant, 5), constant)
    assert average(torch.tensor(3), torch.tensor(4), 5) == 4


ONE_STEP = {"epochs": 1, "optimizer": "sgd", "schedule": "constant", "weight_decay": 0.0, "batch_size": 31}


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """31 to train with, none of which is changed in training."""
    return str(draw(tmp_path / "pictures"))


def test_batches_that_make_one_step_together_are_one_large_batch(tmp_path: Path, pictures: str) -> None:
    # More than there are: the last step of an epoch is the mean of what is left.
    train(settings(data=pictures, **{**ONE_STEP, "batch_size": 1, "accumulate": 40}), tmp_path / "small")
    train(settings(data=pictures, **ONE_STEP), tmp_path / "large")
    small, large = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("small", "large"))
    assert small["global_step"] == large["global_step"] == 1
    for name, value in large["state_dict"].items():
        torch.testing.assert_close(small["state_dict"][name], value, rtol=1e-4, atol=1e-7)


def test_clipped_gradient_is_as_long_as_told(tmp_path: Path, pictures: str) -> None:
    def step(clip: float | None, rate: float) -> dict[str, Tensor]:
        train(settings(data=pictures, **{**ONE_STEP, "learning_rate": rate, "clip": clip}), tmp_path / "run")
        return weights(tmp_path / "run" / "last.ckpt")

    start, free, clipped = step(None, 0.0), step(None, 0.1), step(1e-3, 0.1)

    def length(end: dict[str, Tensor]) -> float:
        moved = [(end[name] - start[name]).flatten() for name in start]
        return float(torch.cat(moved).norm()) / (0.1 * 1.9)  # Nesterov's momentum: the first step is 1.9 times the rate

    assert length(free) > 0.01
    assert length(clipped) == pytest.approx(1e-3, rel=0.01)


def test_lower_precision_trains(tmp_path: Path) -> None:
    note = train(settings(epochs=2, precision="bf16-mixed"), tmp_path / "low")
    train(settings(epochs=2), tmp_path / "full")
    assert not same(tmp_path / "low" / "last.ckpt", tmp_path / "full" / "last.ckpt")
    assert note.validation["validation_loss"] < 2.4
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "low" / "last.ckpt").values())


def test_the_best_few_are_kept_and_the_best_is_one_of_them(tmp_path: Path) -> None:
    train(settings(epochs=4, keep=2, learning_rate=3e-3), tmp_path)
    folder = RunFolder(tmp_path)
    kept = sorted(folder.kept.iterdir())
    assert len(kept) == 2
    assert any(same(path, folder.best) for path in kept)
    # Another run there removes them.
    train(settings(epochs=1), tmp_path)
    assert not list(folder.kept.iterdir())


def test_run_is_repeated_from_its_config(tmp_path: Path) -> None:
    options = ["--epochs", "2", "--batch-size", "24", "--ema", "0.9", "--lr", "0.01", "--schedule", "steps"]
    train_ = ["train", "lenet5", "--data", "tiny-digits", "--seed", "3", *options]
    one, two, other = (RunFolder(tmp_path / name) for name in ("one", "two", "other"))
    assert cli.run([*train_, "--output", str(one.root)]) == 0
    assert cli.run(["train", "--config", str(one.config), "--output", str(two.root)]) == 0
    assert same(one.last, two.last)
    assert one.config.read_text() == two.config.read_text()
    # An option goes over the file.
    assert cli.run(["train", "--config", str(one.config), "--seed", "4", "--output", str(other.root)]) == 0
    assert not same(one.last, other.last)


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    told = settings("unet", "tiny-scenes", clip=0.5, warm_up=0.2)
    transfer = Transfer(checkpoint='some "where"/ä.ckpt', freeze="body", freeze_epochs=3, body_rate=0.1)
    for each in (told, msgspec.structs.replace(told, transfer=transfer, size=(32, 48))):
        run.write_settings(tmp_path / "config.toml", each)
        assert run.read_settings(tmp_path / "config.toml") == each


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('architecture = "lenet5"', "missing required field"),
        ("[[", "config.toml: "),
        ('architecture = "lenet5"\nlayers = 3', "layers"),
    ],
)
def test_config_that_is_not_one_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(BadTraining, match=message):
        run.read_settings(path)
    with pytest.raises(BadTraining, match="there is no file"):
        run.read_settings(tmp_path / "none.toml")
