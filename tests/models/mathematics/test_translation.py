"""What happens to an answer when the image moves: convolution moves along, pooling forgives a little."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.nn import functional as F

SHIFT = (2, 3)  # down and to the right


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def image(side: int = 16) -> Tensor:
    return torch.randn(1, 2, side, side, dtype=torch.float64)


def moved(x: Tensor, rows: int, columns: int) -> Tensor:
    """What comes in at the top and the left is new: nothing wraps round."""
    height, width = x.shape[-2:]
    fresh = torch.randn(*x.shape[:2], height + rows, width + columns, dtype=x.dtype)
    fresh[..., rows:, columns:] = x
    return fresh[..., :height, :width]


def convolution(**options: int) -> nn.Module:
    return nn.Conv2d(2, 3, 3, dtype=torch.float64, **options).requires_grad_(False)


@pytest.mark.parametrize(
    "layer",
    [convolution(), convolution(dilation=2), nn.Sequential(convolution(), nn.ReLU(), nn.MaxPool2d(3, stride=1))],
)
def test_convolution_of_a_moved_image_is_the_moved_convolution(layer: nn.Module) -> None:
    x = image()
    before, after = layer(x), layer(moved(x, *SHIFT))
    assert_allclose(after[..., 2:, 3:], before[..., :-2, :-3], atol=1e-12)
    assert not np.allclose(after, before)


def test_padding_breaks_it_at_the_border_only() -> None:
    x, layer = image(), convolution(padding=1)
    before, after = layer(x), layer(moved(x, *SHIFT))
    assert_allclose(after[..., 3:-1, 4:-1], before[..., 1:-3, 1:-4], atol=1e-12)
    # The border row saw zeros where now there are pixels.
    assert not np.allclose(after[..., 2, 4:-1], before[..., 0, 1:-4])


def test_stride_keeps_it_for_its_multiples_only() -> None:
    x, layer = image(), convolution(stride=2)
    before = layer(x)
    assert_allclose(layer(moved(x, 2, 4))[..., 1:, 2:], before[..., :-1, :-2], atol=1e-12)
    by_one = layer(moved(x, 1, 1))
    for rows in range(2):
        for columns in range(2):
            kept = by_one[..., rows:, columns:]
            assert not np.allclose(kept, before[..., : kept.shape[2], : kept.shape[3]])


def test_weights_of_their_own_at_every_place_break_it_everywhere() -> None:
    x = image(8)
    weights = torch.randn(36, 18, dtype=torch.float64)

    def unshared(x: Tensor) -> Tensor:
        return (F.unfold(x, 3)[0].T * weights).sum(dim=1).reshape(6, 6)

    before, after = unshared(x), unshared(moved(x, 1, 1))
    assert not np.isclose(after[1:, 1:], before[:-1, :-1]).any()


def spot(row: int, column: int) -> Tensor:
    x = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    x[0, 0, row, column] = 1
    return x


@pytest.mark.parametrize("stride", [3, 1])
def test_maximum_forgives_a_shift_within_its_window(stride: int) -> None:
    pool = nn.MaxPool2d(3, stride)
    here = pool(spot(3, 6))
    if stride == 3:
        same = [
            (row, column) for row in range(12) for column in range(12) if torch.equal(pool(spot(row, column)), here)
        ]
        assert same == [(row, column) for row in range(3, 6) for column in range(6, 9)]
    else:
        # Windows that overlap answer at nine places, of which a shift by one keeps six.
        assert (pool(spot(3, 7)) * here).sum() == 6
        assert (pool(spot(3, 9)) * here).sum() == 0


def test_mean_forgives_it_too_but_a_convolution_does_not() -> None:
    mean = nn.AvgPool2d(3)
    assert_allclose(mean(spot(4, 7)), mean(spot(3, 6)))
    assert not torch.equal(mean(spot(5, 9)), mean(spot(3, 6)))
    layer = nn.Conv2d(1, 1, 3, stride=3, dtype=torch.float64).requires_grad_(False)
    assert not np.allclose(layer(spot(4, 7)), layer(spot(3, 6)))


@pytest.mark.parametrize("pool", [lambda x: x.mean(dim=(2, 3)), lambda x: x.amax(dim=(2, 3))])
def test_pooling_of_all_the_map_forgives_every_shift(pool: Callable[[Tensor], Tensor]) -> None:
    layer = convolution()
    x = torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    x[..., 3:7, 3:7] = image(4)
    shifted = torch.roll(x, (5, 4), dims=(2, 3))
    assert_allclose(pool(layer(shifted)), pool(layer(x)), atol=1e-12)
    # Over the edge there is less of it to see.
    cut = torch.zeros_like(x)
    cut[..., 15:, 3:7] = x[..., 3:4, 3:7]
    assert not np.allclose(pool(layer(cut)), pool(layer(x)))
