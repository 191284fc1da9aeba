"""DeepLabv3: output stride, rates, the pyramid, and torchvision's form of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.analysis.torch_reader import count
from convoy.models.classification.resnet import ResNet
from convoy.models.pretrained import weights
from convoy.models.segmentation.deeplab_v3 import DeepLabV3, Pyramid
from tests.models.pretrained.test_torchvision import TOLERANCE, Random, downsampled
from tests.models.segmenters import assert_exports, settled


def rates(network: nn.Module) -> list[int]:
    return [m.dilation[0] for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("output_stride", "third", "last", "pyramid"),
    [(16, [1] * 6, [2, 4, 8], [6, 12, 18]), (8, [2] * 6, [4, 8, 16], [12, 24, 36])],
)
def test_rates_are_the_papers(output_stride: int, third: list[int], last: list[int], pyramid: list[int]) -> None:
    network = DeepLabV3(width=2, output_stride=output_stride)
    assert [rates(stage) for stage in network.stages] == [[1] * 3, [1] * 4, third, last]
    assert rates(network.pyramid) == pyramid


@pytest.mark.parametrize("output_stride", [8, 16])
def test_maps_are_smaller_than_the_image_by_the_output_stride(output_stride: int) -> None:
    network = DeepLabV3(width=2, output_stride=output_stride).eval()
    shapes = []
    network.pyramid.register_forward_hook(lambda _, arguments, answer: shapes.append((*arguments, answer)))
    network(torch.zeros(1, 3, 65, 97))
    ((before, after),) = shapes
    side = (-(-65 // output_stride), -(-97 // output_stride))
    assert before.shape == (1, 64, *side)
    assert after.shape == (1, 8, *side)


def test_parameters_are_those_of_the_parts() -> None:
    resnet = 25_557_032 - 2_049_000  # ResNet-50 in torchvision, without its classifier
    pyramid = 2 * 2048 * 256 + 3 * 2048 * 256 * 9 + 5 * 256 * 256 + 6 * 512
    with torch.device("meta"):
        assert count(DeepLabV3(classes=21)).trainable == resnet + pyramid + 257 * 21


def test_torchvisions_form_has_its_parameters_and_its_body() -> None:
    auxiliary = 1024 * 256 * 9 + 512 + 257 * 21  # a head that is there in training only
    with torch.device("meta"):
        network = DeepLabV3(classes=21, output_stride=8, form="torchvision")
        body = ResNet((3, 4, 6, 3), form="v1.5", output_stride=8)
    assert count(network).trainable == 42_004_074 - auxiliary
    ours = {name: value.shape for name, value in network.state_dict().items() if name.startswith(("stem.", "stages."))}
    theirs = {name: value.shape for name, value in body.state_dict().items() if not name.startswith("classifier.")}
    assert ours == theirs
    assert rates(network.stages) == rates(body.stages)


def as_torchvision(state: Random, x: Tensor, classes: int) -> Tensor:
    """The network as the names of torchvision's tensors tell it, at an output stride of 8."""

    def activated(conv: str, norm: str, x: Tensor, out: int, kernel: int, stride: int = 1, rate: int = 1) -> Tensor:
        return F.relu(state.norm(norm, state.conv(conv, x, out, kernel, stride, rate=rate)))

    size = x.shape[-2:]
    x = F.max_pool2d(activated("backbone.conv1", "backbone.bn1", x, 64, 7, 2), 3, 2, 1)
    # The first block of a stage whose stride has become a rate still has the rate before.
    for stage, (blocks, stride, first, rate) in enumerate([(3, 1, 1, 1), (4, 2, 1, 1), (6, 1, 1, 2), (3, 1, 2, 4)]):
        for index in range(blocks):
            name = f"backbone.layer{stage + 1}.{index}"
            width, step, dilation = 64 << stage, 1 if index else stride, rate if index else first
            y = activated(f"{name}.conv1", f"{name}.bn1", x, width, 1)
            y = activated(f"{name}.conv2", f"{name}.bn2", y, width, 3, step, dilation)
            y = state.norm(f"{name}.bn3", state.conv(f"{name}.conv3", y, 4 * width, 1))
            x = F.relu(y + downsampled(state, name, x, 4 * width, step))
    branches = [activated("classifier.0.convs.0.0", "classifier.0.convs.0.1", x, 256, 1)]
    for number, rate in ((1, 12), (2, 24), (3, 36)):
        name = f"classifier.0.convs.{number}"
        branches.append(activated(f"{name}.0", f"{name}.1", x, 256, 3, rate=rate))
    whole = activated("classifier.0.convs.4.1", "classifier.0.convs.4.2", x.mean((2, 3), keepdim=True), 256, 1)
    branches.append(F.interpolate(whole, x.shape[-2:], mode="bilinear", align_corners=False))
    x = activated("classifier.0.project.0", "classifier.0.project.1", torch.cat(branches, dim=1), 256, 1)
    x = activated("classifier.1", "classifier.2", x, 256, 3)
    state.conv("aux_classifier.4", x, classes, 1, bias=True)  # a head for training; whatever it answers is left
    return F.interpolate(state.conv("classifier.4", x, classes, 1, bias=True), size, mode="bilinear")


def test_weights_under_torchvisions_names_give_the_answers_that_those_names_stand_for(tmp_path: Path) -> None:
    state, images = Random(), torch.randn(1, 3, 65, 81, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = as_torchvision(state, images, classes=21)
        torch.save(dict(state), tmp_path / "deeplabv3_resnet50.pth")
        adopted = weights.adopt("deeplab_v3", tmp_path / "deeplabv3_resnet50.pth")
        answer = adopted.network(images)
    assert (adopted.library, adopted.pixels, len(adopted.description.labels)) == ("torchvision", "imagenet", 21)
    assert answer.shape == expected.shape
    assert float(expected.std(dim=(2, 3)).mean()) > 0.05 * float(expected.abs().max())
    assert float((answer - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def test_pyramid_sees_the_whole_image_only_through_its_last_branch() -> None:
    pyramid = settled(Pyramid(3, 4, [1, 2, 3]))
    x = torch.rand(1, 3, 9, 20, requires_grad=True)

    def seen(answer: Tensor) -> int:
        (gradient,) = torch.autograd.grad(answer[0, :, 4, 0].sum(), x)
        return int(gradient[0].abs().sum((0, 1)).nonzero().max())

    assert [seen(branch(x)) for branch in (*pyramid.branches, pyramid.image)] == [0, 1, 2, 3, 19]


def test_every_branch_reaches_the_output() -> None:
    network = settled(DeepLabV3(width=2)).train()
    network(torch.randn(2, 3, 96, 80)).square().sum().backward()
    weights = {name: p for name, p in network.named_parameters() if p.dim() == 4}
    assert sum(name.startswith("pyramid.branches") for name in weights) == 4
    assert "pyramid.image.conv.weight" in weights
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights.values())


def test_single_image_can_be_trained_on() -> None:
    network = DeepLabV3(width=2).train()
    before = network.pyramid.image.norm.running_mean.clone()
    assert network(torch.randn(1, 3, 64, 64)).isfinite().all()
    assert torch.equal(network.pyramid.image.norm.running_mean, before)
    network(torch.randn(2, 3, 64, 64))
    assert not torch.equal(network.pyramid.image.norm.running_mean, before)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 96), (95, 50)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_class_map_has_the_size_of_the_image(output_stride: int, size: tuple[int, int]) -> None:
    network = DeepLabV3(channels=3, classes=5, width=2, output_stride=output_stride).eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize(("argument", "value"), [("output_stride", 32), ("form", "keras")])
def test_what_it_cannot_be_built_with_is_refused(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{argument} is {value!r}, want"):
        DeepLabV3(width=2, **{argument: value})


@pytest.mark.soak  # test_zoo.py exports the form of the paper
def test_exported_answers_as_pytorch_at_any_size() -> None:
    assert_exports(DeepLabV3(classes=4, width=2, output_stride=8, form="torchvision"))
