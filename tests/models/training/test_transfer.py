"""Training that starts from other weights: what is taken over, what is new, what is frozen, what is slower."""

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.models import checkpoint
from convoy.models.checkpoint import Description
from convoy.models.registry import ARCHITECTURES
from convoy.models.training.run import RunFolder, Transfer
from convoy.models.training.train import train
from convoy.models.training.transfer import head
from convoy.service import cli
from convoy.service.metadata import InputSpec, TensorInput
from tests.models.conftest import settings, untrained
from tests.models.pictures import draw


def description(architecture: str, labels: list[str]) -> Description:
    """Of a network as its architecture has it, but small in its width."""
    row = ARCHITECTURES[architecture]
    tensor = row.input if isinstance(row.input, TensorInput) else None
    return Description(
        architecture=architecture,
        arguments=dict(row.arguments),
        task=row.task,
        input=row.input if isinstance(row.input, InputSpec) else None,
        tensor=tensor,
        data="",
        labels=labels,
        palette=None,
        mean=[0.0],
        std=[1.0],
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_of_every_architecture_is_what_answers_with_classes(architecture: str) -> None:
    asked = description(architecture, [str(number) for number in range(7)])
    names = head(asked)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in asked.build().state_dict().items()}
    assert names
    # The answer itself and its like, never a convolution of the body: no module without the classes among its sides.
    for module in {name.rpartition(".")[0] for name in names}:
        own = [shape for name, shape in shapes.items() if name.rpartition(".")[0] == module]
        assert any(side % 7 == 0 for shape in own for side in shape), module
    assert sum(shapes[name].numel() for name in names) < 0.7 * sum(shape.numel() for shape in shapes.values())


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """LeNet-5 for ten digits, which takes pixels in a way of its own."""
    path = untrained(tmp_path, "lenet5", "tiny-digits", seed=9)
    content = torch.load(path, weights_only=True)
    content["convoy"]["mean"], content["convoy"]["std"] = [0.3], [0.2]
    torch.save(content, path)
    return path


def test_body_comes_over_the_head_is_new_and_pixels_go_in_as_the_weights_expect(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(draw(tmp_path / "pictures"))
    told = settings(data=data, epochs=1, learning_rate=0.0, weight_decay=0.0)
    train(msgspec.structs.replace(told, transfer=Transfer(checkpoint=str(source))), tmp_path / "run")
    err = capsys.readouterr().err
    assert "new: output.weight, output.bias" in err
    before, after = weights(source), weights(tmp_path / "run" / "last.ckpt")
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("output."))
    assert after["output.weight"].shape[0] == 3
    found, _ = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert (found.mean, found.std, found.labels) == ([0.3], [0.2], ["across", "dots", "down"])


def test_head_comes_along_where_the_classes_are_the_same(tmp_path: Path, source: Path) -> None:
    told = settings(epochs=1, learning_rate=0.0, weight_decay=0.0)
    train(msgspec.structs.replace(told, transfer=Transfer(checkpoint=str(source))), tmp_path / "run")
    before, after = weights(source), weights(tmp_path / "run" / "last.ckpt")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_frozen_body_stays_for_as_long_as_told(tmp_path: Path, source: Path) -> None:
    before = weights(source)
    data = str(draw(tmp_path / "pictures"))
    for epochs, until, moves in ((2, None, False), (2, 2, False), (3, 2, True)):
        told = settings(data=data, epochs=epochs, learning_rate=1e-2)
        train(
            msgspec.structs.replace(
                told, transfer=Transfer(checkpoint=str(source), freeze="body", freeze_epochs=until)
            ),
            tmp_path / "run",
        )
        after = weights(tmp_path / "run" / "last.ckpt")
        body = [name for name in before if not name.startswith("output.")]
        assert any(not torch.equal(after[name], before[name]) for name in body) == moves
        assert float(after["output.weight"].abs().sum()) > 0


def test_batch_normalisation_of_a_frozen_body_stays(tmp_path: Path) -> None:
    data = str(draw(tmp_path / "pictures", colour=True))
    small = ["--size", "32x32", "--epochs", "1", "--batch-size", "16"]
    assert (
        cli.run(["train", "mobilenet", "--data", data, *small, "--set", "alpha=0.25", "--output", str(tmp_path / "a")])
        == 0
    )
    first = RunFolder(tmp_path / "a").last
    other = str(draw(tmp_path / "others", classes=("left", "right"), colour=True))
    for name, freeze, stays in (("b", ["--freeze", "body"], True), ("c", [], False)):
        run = ["train", "mobilenet", "--data", other, "--from", str(first), "--epochs", "1", "--batch-size", "16"]
        assert cli.run([*run, *freeze, "--output", str(tmp_path / name)]) == 0
        # Size and arguments came with the weights.
        found, network = checkpoint.load(RunFolder(tmp_path / name).last)
        assert (found.input.height, found.arguments) == (32, {"alpha": 0.25})
        means = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
        before = weights(first)
        same = [torch.equal(module.running_mean, before[f"{name}.running_mean"]) for name, module in means.items()]
        assert all(same) if stays else not any(same)


def test_grey_pictures_go_as_rgb_into_a_network_that_wants_that(tmp_path: Path) -> None:
    shape = ["mobilenet", "--epochs", "1", "--batch-size", "16"]
    small = ["--size", "32x32", "--set", "alpha=0.25"]
    colour, grey = (str(draw(tmp_path / str(own), colour=own)) for own in (True, False))
    first, second = (RunFolder(tmp_path / name) for name in ("first", "second"))
    assert cli.run(["train", *shape, *small, "--data", colour, "--output", str(first.root)]) == 0
    assert cli.run(["train", *shape, "--data", grey, "--from", str(first.last), "--output", str(second.root)]) == 0
    found, _ = checkpoint.load(second.last)
    assert found.input is not None
    assert (found.input.colour, len(found.mean)) == ("RGB", 3)
    assert found.held_out()[0][0].shape == (32, 32, 3)
    assert cli.run(["train", "--resume", str(second.last), "--epochs", "2"]) == 0


def test_body_with_a_rate_of_its_own_moves_less(tmp_path: Path, source: Path) -> None:
    before, moved = weights(source), {}
    data = str(draw(tmp_path / "pictures"))
    for rate in (1.0, 0.1, 0.0):
        told = settings(data=data, epochs=1, optimizer="sgd", learning_rate=1e-3, weight_decay=0.0)
        train(
            msgspec.structs.replace(told, transfer=Transfer(checkpoint=str(source), body_rate=rate)), tmp_path / "run"
        )
        after = weights(tmp_path / "run" / "last.ckpt")
        moved[rate] = float((after["c5.weight"] - before["c5.weight"]).norm())
    assert moved[0.0] == 0
    assert 0.05 * moved[1.0] < moved[0.1] < 0.2 * moved[1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet1989", "--from", "SOURCE"], "has architecture 'lenet5', this run has 'lenet1989'"),
        (["lenet5", "--from", "SOURCE", "--data", "COLOUR"], "accepts 1 channels, "),
        (["lenet5", "--from", "SOURCE", "--size", "48x48"], "lenet5 at 48x48"),
        (
            ["convpool", "--from", "CONVPOOL", "--size", "40x40"],
            "has 500x800 for dense.weight, want 500x2450",
        ),
        (["lenet5", "--freeze", "body"], "--freeze requires --from CHECKPOINT"),
    ],
)
def test_weights_that_do_not_go_with_the_run_are_refused_in_one_line(
    tmp_path: Path, source: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"SOURCE": str(source), "CONVPOOL": str(untrained(tmp_path, "convpool"))}
    places["COLOUR"] = str(draw(tmp_path / "pictures", colour=True))
    run = ["train", "--data", "tiny-digits", "--output", str(tmp_path / "run")]
    assert cli.run([*run, *(places.get(word, word) for word in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
