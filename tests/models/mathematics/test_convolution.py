"""Convolution: its definition, its product of matrices, its gradients, and what stacks of it come to."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.blocks import Conv2dSame
from convoy.models.classification.locally_connected import LocallyConnected2d
from tests.models.mathematics import definitions
from tests.models.mathematics.definitions import Array

GEOMETRIES = [(1, 0), (2, 0), (1, 2), (2, 1), (3, 2)]  # stride and padding


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def tensor(values: Array, gradient: bool = False) -> Tensor:
    return torch.tensor(values, requires_grad=gradient)


def test_convolution_is_the_double_sum(random: np.random.Generator) -> None:
    x, kernel = random.normal(size=(6, 7)), random.normal(size=(3, 2))
    expected = definitions.convolution(x, kernel)
    # A network's layer correlates: it convolves with the kernel turned by half a circle.
    turned = kernel[::-1, ::-1].copy()
    assert_allclose(F.conv2d(tensor(x)[None, None], tensor(turned)[None, None])[0, 0], expected, atol=1e-12)
    assert not np.allclose(F.conv2d(tensor(x)[None, None], tensor(kernel)[None, None])[0, 0], expected)


def test_cross_correlation_is_convolution_with_the_flipped_kernel(random: np.random.Generator) -> None:
    x, kernel = random.normal(size=(5, 8)), random.normal(size=(2, 3))
    flipped = definitions.cross_correlation(x[None], kernel[None, None, ::-1, ::-1])[0]
    assert_allclose(flipped, definitions.convolution(x, kernel), atol=1e-12)
    # Convolution commutes where all partial overlaps count, which correlation does not.
    padded_x, padded_kernel = np.pad(x, ((1, 1), (2, 2))), np.pad(kernel, ((4, 4), (7, 7)))
    assert_allclose(definitions.convolution(padded_x, kernel), definitions.convolution(padded_kernel, x), atol=1e-12)


def test_flipping_a_symmetric_kernel_makes_no_difference(random: np.random.Generator) -> None:
    x, kernel = random.normal(size=(1, 6, 6)), np.array([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    correlated = definitions.cross_correlation(x, kernel[None, None])[0]
    assert_allclose(correlated, definitions.convolution(x[0], kernel), atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("stride", "padding"), GEOMETRIES)
def test_layer_is_the_sum_over_maps_and_taps(
    stride: int, padding: int, dilation: int, random: np.random.Generator
) -> None:
    layer = nn.Conv2d(3, 4, (3, 2), stride, padding, dilation, bias=False, dtype=torch.float64)
    x = random.normal(size=(3, 9, 8))
    expected = definitions.cross_correlation(x, layer.weight.detach().numpy(), stride, padding, dilation)
    assert_allclose(layer(tensor(x)[None])[0].detach(), expected, atol=1e-12)


@pytest.mark.parametrize(("stride", "side"), [(1, 6), (2, 7), (2, 8), (3, 8)])
def test_same_padding_is_the_sum_over_a_padded_image(stride: int, side: int, random: np.random.Generator) -> None:
    layer = Conv2dSame(2, 3, 3, stride, bias=False).double()
    x = random.normal(size=(2, side, side))
    missing = max(0, (-(-side // stride) - 1) * stride + 3 - side)
    before, after = missing // 2, missing - missing // 2
    padded = np.pad(x, ((0, 0), (before, after), (before, after)))
    expected = definitions.cross_correlation(padded, layer.weight.detach().numpy(), stride)
    assert_allclose(layer(tensor(x)[None])[0].detach(), expected, atol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), GEOMETRIES)
def test_convolution_is_one_product_of_matrices(stride: int, padding: int, random: np.random.Generator) -> None:
    x, weight = random.normal(size=(3, 8, 7)), random.normal(size=(4, 3, 3, 3))
    patches = definitions.im2col(x, 3, stride, padding)
    expected = definitions.cross_correlation(x, weight, stride, padding)
    assert_allclose((weight.reshape(4, -1) @ patches).reshape(expected.shape), expected, atol=1e-12)
    assert_allclose(F.unfold(tensor(x)[None], 3, padding=padding, stride=stride)[0], patches)


@pytest.mark.parametrize(("stride", "padding"), GEOMETRIES)
def test_gradients_are_the_transposed_products(stride: int, padding: int, random: np.random.Generator) -> None:
    x, weight = tensor(random.normal(size=(3, 8, 7)), True), tensor(random.normal(size=(4, 3, 3, 3)), True)
    y = F.conv2d(x[None], weight, stride=stride, padding=padding)[0]
    error = random.normal(size=y.shape)
    by_x, by_weight = torch.autograd.grad(y, (x, weight), tensor(error))

    matrix, flat = weight.detach().numpy().reshape(4, -1), error.reshape(4, -1)
    patches = definitions.im2col(x.detach().numpy(), 3, stride, padding)
    assert_allclose(by_weight, (flat @ patches.T).reshape(weight.shape), atol=1e-12)
    assert_allclose(by_x, definitions.col2im(matrix.T @ flat, (3, 8, 7), 3, stride, padding), atol=1e-12)


def test_scattering_is_the_transpose_of_gathering(random: np.random.Generator) -> None:
    # <im2col(x), p> = <x, col2im(p)> for all x and p; where windows overlap, one is not the inverse of the other.
    x, shape = random.normal(size=(2, 6, 5)), (2, 6, 5)
    patches = definitions.im2col(x, 3, 2, 1)
    other = random.normal(size=patches.shape)
    assert (patches * other).sum() == pytest.approx((x * definitions.col2im(other, shape, 3, 2, 1)).sum())
    assert not np.allclose(definitions.col2im(patches, shape, 3, 2, 1), x)
    tiles = definitions.im2col(x[:, :, :4], 2, 2, 0)
    assert_allclose(definitions.col2im(tiles, (2, 6, 4), 2, 2, 0), x[:, :, :4])


@pytest.mark.parametrize(("stride", "padding"), GEOMETRIES)
def test_shared_weight_has_the_sum_of_the_gradients_of_its_places(
    stride: int, padding: int, random: np.random.Generator
) -> None:
    x, weight = tensor(random.normal(size=(5, 1, 11))), tensor(random.normal(size=(1, 1, 4)), True)
    y = F.conv1d(x, weight, stride=stride, padding=padding)
    error = random.normal(size=y.shape)
    (gradient,) = torch.autograd.grad(y, weight, tensor(error))
    expected = definitions.shared_weight_gradient(x[:, 0].numpy(), error[:, 0], 4, stride, padding)
    assert_allclose(gradient[0, 0], expected, atol=1e-12)


def test_untied_weights_have_the_gradients_that_a_shared_one_sums(random: np.random.Generator) -> None:
    x = tensor(random.normal(size=(3, 2, 6, 7)))
    shared = tensor(random.normal(size=(4, 2, 3, 3)), True)
    untied = LocallyConnected2d(2, 4, (6, 7), 3, stride=2).double()
    with torch.no_grad():
        untied.weight.copy_(shared.reshape(4, -1).expand_as(untied.weight))
        untied.bias.zero_()
    y = F.conv2d(x, shared, stride=2)
    assert_allclose(untied(x).detach(), y.detach(), atol=1e-12)
    error = tensor(random.normal(size=y.shape))
    (tied,) = torch.autograd.grad(y, shared, error)
    (places,) = torch.autograd.grad(untied(x), untied.weight, error)
    assert_allclose(places.sum(dim=0).reshape(tied.shape), tied, atol=1e-12)
    patches = np.stack([definitions.im2col(image, 3, 2, 0) for image in x.numpy()])
    expected = np.einsum("nop,nip->poi", error.flatten(2), patches)  # of each place what it saw and how wrong it was
    assert_allclose(places, expected, atol=1e-12)


def test_two_convolutions_are_one_with_a_larger_kernel(random: np.random.Generator) -> None:
    x = tensor(random.normal(size=(1, 2, 12, 11)))
    first, second = tensor(random.normal(size=(3, 2, 3, 3))), tensor(random.normal(size=(4, 3, 3, 3)))
    stacked = F.conv2d(F.conv2d(x, first), second)
    one = F.conv2d(x, composed(first, second))
    assert composed(first, second).shape == (4, 2, 5, 5)
    assert_allclose(one, stacked, atol=1e-11)
    # With padding the same holds away from the border only: there the inner layer's zeros are not the outer one's.
    padded = F.conv2d(F.conv2d(x, first, padding=1), second, padding=1)
    one_padded = F.conv2d(x, composed(first, second), padding=2)
    assert_allclose(one_padded[..., 1:-1, 1:-1], padded[..., 1:-1, 1:-1], atol=1e-11)
    assert not np.allclose(one_padded[..., 0, :], padded[..., 0, :])


def test_rectifier_between_two_convolutions_is_no_larger_kernel(random: np.random.Generator) -> None:
    x = tensor(random.normal(size=(1, 2, 12, 11)))
    first, second = tensor(random.normal(size=(3, 2, 3, 3))), tensor(random.normal(size=(4, 3, 3, 3)))
    assert not np.allclose(F.conv2d(x, composed(first, second)), F.conv2d(F.conv2d(x, first).relu(), second))


def test_three_small_kernels_span_seven_pixels_with_half_the_weights(random: np.random.Generator) -> None:
    kernels = [tensor(random.normal(size=(2, 2, 3, 3))) for _ in range(3)]
    whole = composed(composed(kernels[0], kernels[1]), kernels[2])
    assert whole.shape[2:] == (7, 7)
    x = tensor(random.normal(size=(1, 2, 9, 9)))
    stacked = F.conv2d(F.conv2d(F.conv2d(x, kernels[0]), kernels[1]), kernels[2])
    assert_allclose(F.conv2d(x, whole), stacked, atol=1e-10)
    # 27 C^2 against 49 C^2 weights (Simonyan and Zisserman, section 2.3).
    assert (sum(kernel.numel() for kernel in kernels), whole.numel()) == (27 * 4, 49 * 4)


def composed(first: Tensor, second: Tensor) -> Tensor:
    """The kernels of both layers in one: each map's kernel of the first, convolved with those of the second that read
    it. (M, C, h, w) and (O, M, h', w') -> (O, C, h + h' - 1, w + w' - 1)"""
    rows, columns = second.shape[2] - 1, second.shape[3] - 1
    return F.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=(rows, columns)).transpose(0, 1)
