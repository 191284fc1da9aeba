"""What stands in for data and for training where weights come without them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from convoy.models import checkpoint, registry
from convoy.models.checkpoint import Description
from convoy.models.data.builtin.generated import GeneratedSplit
from convoy.models.errors import BadCheckpoint
from convoy.models.evaluation.evaluate import evaluate_file
from convoy.models.export.export import export
from convoy.models.zoo import randomise
from convoy.service.metadata import InputSpec


def fresh(folder: Path) -> Path:
    """A checkpoint of LeNet-5 that was trained nowhere."""
    network = registry.build("lenet5", channels=3, classes=4)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    randomise(network, images)
    description = Description(
        architecture="lenet5",
        arguments={},
        task="classification",
        input=registry.input_spec("lenet5", network, "RGB"),
        data="",
        labels=list("abcd"),
        palette=None,
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.3, 0.4],
        channel_order="BGR",
    )
    path = folder / "fresh.ckpt"
    checkpoint.save(path, description, network)
    return path


def test_weights_without_data_are_compared_on_generated_images(tmp_path: Path) -> None:
    exported = export(fresh(tmp_path), tmp_path / "repository")
    assert exported.document.parity is not None
    assert exported.document.provenance is not None
    assert exported.document.parity.images == 64
    assert exported.document.provenance.metrics == {}


def test_weights_without_data_are_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="were not trained here"):
        evaluate_file(fresh(tmp_path))


def test_generated_images_differ_and_are_the_same_every_time() -> None:
    spec = InputSpec(colour="RGB", height=20, width=30)
    (first, _), (again, _), (second, _) = (GeneratedSplit(spec)[index] for index in (0, 0, 1))
    assert first.shape == (20, 30, 3)
    assert (first == again).all()
    assert abs(first.astype(int) - second).mean() > 10
    assert first.std() > 20


def test_generated_images_of_a_free_size_have_several_odd_ones_too() -> None:
    split = GeneratedSplit(InputSpec(colour="L", fit="pad"))
    sizes = {split.size(index) for index in range(6)}
    assert len(sizes) == 3
    assert any(height % 2 and width % 2 for height, width in sizes)
    assert split[1][0].shape == (*split.size(1), 1)


@pytest.mark.parametrize("settled", [False, True])
def test_settled_weights_tell_images_apart_through_many_layers(settled: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(30)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    images = torch.randn(6, 3, 16, 16)
    if settled:
        randomise(network, images)
    with torch.no_grad():
        spread = network.eval()(images).std(dim=0).max()
    # The negative control: as they come, the last layer sees the same in every image.
    assert (spread > 0.1) == settled
