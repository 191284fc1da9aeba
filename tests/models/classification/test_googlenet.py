"""GoogLeNet against table 1 of its paper."""

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.blocks import Branches
from convoy.models.classification.googlenet import GoogLeNet
from convoy.models.errors import BadTraining

# Output size as printed; parameters in units of 1,024 as printed, and those of our layers where they are others.
ROWS = {
    "convolution 7x7/2": ((64, 112, 112), 2.7, 9),
    "convolution 3x3/1": ((192, 56, 56), 112, None),
    "inception 3a": ((256, 28, 28), 159, None),
    "inception 3b": ((480, 28, 28), 380, 379),
    "inception 4a": ((512, 14, 14), 364, 366),
    "inception 4b": ((512, 14, 14), 437, 438),
    "inception 4c": ((512, 14, 14), 463, 497),
    "inception 4d": ((528, 14, 14), 580, 590),
    "inception 4e": ((832, 14, 14), 840, 847),
    "inception 5a": ((832, 7, 7), 1072, 1018),
    "inception 5b": ((1024, 7, 7), 1388, 1409),
    "linear": ((1000,), 1000, None),
}
# Multiply-adds in M as printed, and those of our layers where they are others.
OPERATIONS = {
    "convolution 7x7/2": (34, 118),
    "convolution 3x3/1": (360, None),
    "inception 3a": (128, None),
    "inception 3b": (304, None),
    "inception 4a": (73, None),
    "inception 4b": (88, None),
    "inception 4c": (100, None),
    "inception 4d": (119, None),
    "inception 4e": (170, None),
    "inception 5a": (54, 51),
    "inception 5b": (71, None),
    "linear": (1, None),
}


@pytest.fixture(scope="module")
def network() -> GoogLeNet:
    with torch.device("meta"):
        return GoogLeNet()


def rows(network: GoogLeNet) -> dict[str, list[nn.Module]]:
    """The layers of each row of the table, the last of which answers the row's output."""
    first, reduction, second = (layer for layer in network.stem if isinstance(layer, nn.Conv2d))
    modules = [layer for layer in network.modules() if isinstance(layer, Branches)]
    single = [[first], [reduction, second], *([module] for module in modules), [network.output]]
    return dict(zip(ROWS, single, strict=True))


def weights(layers: list[nn.Module]) -> int:
    """Without biases, as the table counts."""
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("row", ROWS)
def test_parameters_are_those_of_the_row(network: GoogLeNet, row: str) -> None:
    _, printed, ours = ROWS[row]
    assert weights(rows(network)[row]) // 1024 == (ours or printed)


def test_printed_parameters_of_the_first_row_are_those_of_separate_rows_and_columns() -> None:
    assert round((7 + 7) * 3 * 64 / 1000, 1) == ROWS["convolution 7x7/2"][1]


def test_outputs_and_multiply_adds_are_those_of_the_table(network: GoogLeNet) -> None:
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: shapes.__setitem__(layer, tuple(out.shape[1:])))
        for layers in rows(network).values()
        for layer in layers
    ]
    network.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    for name, layers in rows(network).items():
        shape = shapes[layers[-1]]
        assert shape == ROWS[name][0], name
        printed, ours = OPERATIONS[name]
        positions = shape[1] * shape[2] if len(shape) == 3 else 1
        # 73.6 is printed as 73.
        assert weights(layers) * positions / 1e6 == pytest.approx(ours or printed, abs=0.65), name


def test_parameters_with_and_without_the_auxiliary_heads(network: GoogLeNet) -> None:
    heads = count(network.heads).total
    assert heads == 2 * (2048 * 1024 + 1024 + 1024 * 1000 + 1000) + (512 + 528) * 128 + 2 * 128 == 6_379_728
    assert count(network).total - heads == 6_998_552


def test_auxiliary_heads_answer_in_training_only(network: GoogLeNet) -> None:
    images = torch.empty(2, 3, 224, 224, device="meta")
    assert [logits.shape for logits in network.train()(images)] == [(2, 1000)] * 3
    logits = network.eval()(images)
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 1000)
    assert network.auxiliary_weight == 0.3


def test_auxiliary_heads_read_4x4_maps_of_4a_and_4d(network: GoogLeNet) -> None:
    shapes = []
    for head in network.heads:
        head[0].register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    network.train()(torch.empty(2, 3, 224, 224, device="meta"))
    assert shapes == [(512, 4, 4), (528, 4, 4)]


def test_dropout_is_the_papers(network: GoogLeNet) -> None:
    rates = {name: layer.p for name, layer in network.named_modules() if isinstance(layer, nn.Dropout)}
    assert rates.pop("dropout") == 0.4
    assert list(rates.values()) == [0.7, 0.7]


def test_heads_fit_other_sizes() -> None:
    with torch.device("meta"):
        for size in ((79, 128), (96, 96), (97, 130), (239, 240)):
            answers = GoogLeNet(classes=5, size=size).train()(torch.empty(2, 3, *size))
            assert [logits.shape for logits in answers] == [(2, 5)] * 3


def test_images_too_small_for_the_heads_are_refused() -> None:
    with pytest.raises(BadTraining, match="googlenet: size is 78x100, want at least 79x79"):
        registry.build("googlenet", 3, 10, size=(78, 100))


def test_logits_depend_on_the_image_and_are_undecided_before_any_training() -> None:
    torch.manual_seed(0)
    network = GoogLeNet(classes=10, size=(96, 96)).train()
    with torch.no_grad():
        for logits in network(torch.randn(8, 3, 96, 96)):
            assert float(logits.std(dim=0).mean()) > 0.01
            assert float(logits.abs().max()) < 3
