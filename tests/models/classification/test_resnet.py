"""ResNets are those of the paper's table, in the two forms that weights are published in."""

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.resnet import Bottleneck, ResNet
from convoy.models.errors import BadTraining


def on_meta(name: str, **arguments: str) -> nn.Module:
    with torch.device("meta"):
        return registry.build(name, channels=3, classes=1000, arguments=arguments)


@pytest.mark.parametrize(
    ("name", "total"), [("resnet50", 25_636_712), ("resnet101", 44_707_176), ("resnet152", 60_419_944)]
)
def test_first_form_has_the_numbers_of_keras(name: str, total: int) -> None:
    assert count(on_meta(name)).total == total


@pytest.mark.parametrize(
    ("name", "trainable"), [("resnet50", 25_557_032), ("resnet101", 44_549_160), ("resnet152", 60_192_808)]
)
def test_later_form_has_the_numbers_of_torchvision(name: str, trainable: int) -> None:
    assert count(on_meta(name, form="v1.5")).trainable == trainable


@pytest.mark.parametrize(("name", "trainable"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_networks_of_basic_blocks_have_one_form(name: str, trainable: int) -> None:
    assert count(on_meta(name)).trainable == trainable
    with pytest.raises(BadTraining, match="it has none"):
        on_meta(name, form="v1")


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101), ("resnet152", 152)]
)
def test_name_counts_the_layers_with_weights_besides_the_projections(name: str, layers: int) -> None:
    found = [
        key
        for key, module in on_meta(name).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in key
    ]
    assert len(found) == layers


@pytest.mark.parametrize(("form", "strides"), [("v1", (2, 1)), ("v1.5", (1, 2))])
def test_stride_of_a_stage_is_where_the_form_has_it(form: str, strides: tuple[int, int]) -> None:
    block = on_meta("resnet50", form=form).get_submodule("stages.stage2.0")
    assert isinstance(block, Bottleneck)
    assert (block.step1.conv.stride[0], block.step2.conv.stride[0]) == strides


@pytest.mark.parametrize(("output_stride", "side"), [(32, 7), (16, 14), (8, 28)])
def test_dilated_stages_keep_the_sides_and_the_weights(output_stride: int, side: int) -> None:
    with torch.device("meta"):
        network = ResNet(form="v1.5", output_stride=output_stride)
        x = network.pool(network.stem(torch.empty(1, 3, 224, 224)))
        assert network.stages(x).shape == (1, 2048, side, side)
    assert count(network) == count(on_meta("resnet50", form="v1.5"))


def test_dilated_network_sees_what_the_strided_one_sees() -> None:
    # At every other position of a dilated stage the inputs are those of the strided one.
    torch.manual_seed(0)
    strided = ResNet((1, 1, 1, 2), form="v1.5", classes=2).eval()
    dilated = ResNet((1, 1, 1, 2), form="v1.5", classes=2, output_stride=16).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        coarse, fine = (network.stages(network.pool(network.stem(x))) for network in (strided, dilated))
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse, rtol=1e-4, atol=1e-4)


def test_deep_network_begins_close_to_the_identity() -> None:
    # With every block at full scale a difference in the input grows thirty times as far on its way down.
    torch.manual_seed(0)
    network = ResNet((3, 8, 36, 3), form="v1.5", classes=2)
    x = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        network.train()
        one, other = (
            network.stages(network.pool(network.stem(image))) for image in (x, x + 1e-3 * torch.randn_like(x))
        )
    assert (one - other).norm() < 0.1 * one.norm()


def test_unknown_form_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadTraining, match=r"form is 'v2', want one of: v1, v1\.5"):
        on_meta("resnet50", form="v2")
