"""SegNet: pooling that remembers, unpooling that lays values where they came from, and the whole network."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.analysis.torch_reader import count
from convoy.models.classification.vgg import VGG
from convoy.models.segmentation.segnet import Pool, SegNet, unpool
from tests.models.segmenters import settled

SHAPES = [(2, 3, 8, 6), (1, 2, 7, 5), (2, 1, 1, 1), (1, 4, 1, 9), (3, 2, 16, 15)]


def images(shape: tuple[int, ...], ties: bool) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if ties:  # three values: most blocks have their maximum more than once
        return torch.randint(-1, 2, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_and_unpooling_are_torchs_own(shape: tuple[int, ...], ties: bool) -> None:
    x = images(shape, ties)
    height, width = shape[2:]
    expected, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    best, winner = Pool()(x)
    assert torch.equal(best, expected)
    rows, columns = torch.arange(best.shape[2])[:, None], torch.arange(best.shape[3])
    assert torch.equal((2 * rows + winner // 2) * width + 2 * columns + winner % 2, indices)
    values = images(tuple(best.shape), ties=False)
    laid = unpool(values, winner, height, width)
    # max_unpool2d takes sides up to twice those pooled, which is what an odd side is rounded up to.
    spread = torch.zeros(*shape[:2], height * width).scatter(2, indices.flatten(2), values.flatten(2))
    assert torch.equal(laid, spread.view(shape))
    if height % 2 == 0 and width % 2 == 0:
        assert torch.equal(laid, F.max_unpool2d(values, indices, 2))


@pytest.mark.parametrize("ties", [False, True])
def test_gradients_are_those_of_torchs_own(ties: bool) -> None:
    x = images((2, 3, 7, 8), ties)
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    (Pool()(found)[0] * torch.arange(16).view(4, 4)).sum().backward()
    (F.max_pool2d(wanted, 2, ceil_mode=True) * torch.arange(16).view(4, 4)).sum().backward()
    assert torch.equal(found.grad, wanted.grad)


def test_encoder_is_vgg16s_body_and_the_decoder_its_mirror() -> None:
    with torch.device("meta"):
        network, vgg = SegNet(channels=3, classes=11), VGG()
    convolutions = {
        part: [m.conv for m in getattr(network, part).modules() if hasattr(m, "conv")]
        for part in ("encoder", "decoder")
    }
    body = [(p.shape[1], p.shape[0]) for name, p in vgg.features.named_parameters() if p.dim() == 4]
    assert [(c.in_channels, c.out_channels) for c in convolutions["encoder"]] == body
    assert [(c.out_channels, c.in_channels) for c in convolutions["decoder"]] == body[:0:-1]
    assert (network.output.in_channels, network.output.out_channels) == (64, 11)


def test_parameters_are_those_of_two_bodies_with_normalisation() -> None:
    maps = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    body = 14_714_688 - maps  # VGG16's convolutions without their biases: "14.7M" in section 3 of the paper
    # The decoder's convolutions are the encoder's turned round, but for the first, which the output's stands for: they
    # answer what those behind the first take.
    normalised = maps + (maps - 512)
    with torch.device("meta"):
        found = count(SegNet(channels=3, classes=11))
    assert found.trainable == 2 * body - 3 * 64 * 9 + (64 * 9 + 1) * 11 + 2 * normalised
    assert found.fixed == 2 * normalised


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 96), (95, 50)])
def test_class_map_has_the_size_of_the_image(size: tuple[int, int]) -> None:
    network = SegNet(channels=3, classes=5, width=2).eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("level", range(5))
def test_indices_of_every_level_reach_the_output(level: int) -> None:
    network = settled(SegNet(width=2))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        before = network(x)
        network.pools[level].register_forward_hook(lambda *arguments: (arguments[-1][0], (arguments[-1][1] + 1) % 4))
        assert float((network(x) - before).abs().mean()) > 1e-3


def test_every_convolution_learns() -> None:
    network = settled(SegNet(width=2)).train()
    network(torch.randn(2, 3, 64, 50)).square().sum().backward()
    weights = [p for name, p in network.named_parameters() if name.endswith("conv.weight")]
    assert len(weights) == 25
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)
