"""How large the answer of a window is: floor((i - k + 2p) / s) + 1, and ceil(i / s) with "same" padding."""

from math import ceil

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from convoy.models.analysis import torch_reader
from convoy.models.analysis.rows import anatomy
from convoy.models.blocks import Conv2dSame, output_size
from convoy.models.errors import ImpossibleLayer

sides = st.integers(1, 40)
kernels = st.integers(1, 7)
strides = st.integers(1, 5)
dilations = st.integers(1, 3)


def size(layer: nn.Module, side: int) -> int:
    return int(layer(torch.empty(1, 1, side, side, device="meta")).shape[-1])


@given(sides, kernels, strides, st.integers(0, 6), dilations)
def test_convolution_leaves_the_floor(i: int, k: int, s: int, p: int, d: int) -> None:
    reach = d * (k - 1) + 1
    expected = (i - reach + 2 * p) // s + 1
    layer = nn.Conv2d(1, 1, k, s, p, d, device="meta").eval()
    if i + 2 * p < reach:
        with pytest.raises(ImpossibleLayer, match="nothing is left by a convolution"):
            torch_reader.read(layer, (1, 1, i, i))
    else:
        assert size(layer, i) == expected >= 1
        assert anatomy(torch_reader.read(layer, (1, 1, i, i))).rows[0].shape == (1, expected, expected)


@given(sides, kernels, strides, st.integers(0, 3))
def test_pooling_leaves_the_floor(i: int, k: int, s: int, p: int) -> None:
    assume(p <= k // 2 and i + 2 * p >= k)
    layer = nn.MaxPool2d(k, s, p)
    expected = (i - k + 2 * p) // s + 1
    assert size(layer, i) == expected
    assert output_size(nn.Sequential(layer), (i, i)) == (expected, expected)


@given(sides, kernels, strides, st.integers(0, 3))
def test_rounded_up_pooling_leaves_the_ceiling_where_a_window_begins_inside(i: int, k: int, s: int, p: int) -> None:
    assume(p <= k // 2 and i + 2 * p >= k)
    expected = ceil((i - k + 2 * p) / s) + 1
    expected -= (expected - 1) * s >= i + p  # a window wholly in the padding is left out
    assert size(nn.MaxPool2d(k, s, p, ceil_mode=True), i) == expected


@given(sides, kernels, strides, dilations)
def test_same_padding_leaves_the_ceiling(i: int, k: int, s: int, d: int) -> None:
    layer = Conv2dSame(1, 1, k, s, dilation=d).to("meta")
    assert size(layer, i) == ceil(i / s)


@given(sides, kernels, strides, dilations)
def test_same_padding_is_no_more_than_is_needed(i: int, k: int, s: int, d: int) -> None:
    layer = Conv2dSame(1, 1, k, s, dilation=d)
    before, after = layer._padding(i, 0)
    assert after - before in (0, 1)
    if before + after > 0:
        assert (i + before + after - 1 - d * (k - 1) - 1) // s + 1 < ceil(i / s)


@given(sides, st.integers(0, 3), dilations)
def test_half_padding_keeps_the_size_with_stride_1(i: int, half: int, d: int) -> None:
    assert size(nn.Conv2d(1, 1, 2 * half + 1, padding=d * half, dilation=d, device="meta"), i) == i


@given(sides, kernels, strides, st.integers(0, 6))
def test_transposed_convolution_goes_back(i: int, k: int, s: int, p: int) -> None:
    # Dumoulin and Visin, relationship 14: a convolution that fits exactly leaves i again.
    assume((i - 1) * s + k - 2 * p >= 1)
    large = (i - 1) * s + k - 2 * p
    assert size(nn.ConvTranspose2d(1, 1, k, s, p, device="meta"), i) == large
    assert size(nn.Conv2d(1, 1, k, s, p, device="meta"), large) == i
