"""What convolution, pooling and their gradients are, in loops that follow the formulas; float64."""

from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def convolution(x: Array, kernel: Array) -> Array:
    """(x * k)(i, j) = sum over m, n of x(m, n) k(i - m, j - n), where all of it overlaps: (H, W) and (h, w) ->
    (H - h + 1, W - w + 1)."""
    (height, width), (rows, columns) = x.shape, kernel.shape
    y = np.zeros((height - rows + 1, width - columns + 1))
    for i, j in np.ndindex(y.shape):
        # The first place where all of it overlaps is (rows - 1, columns - 1) of the sum over all integers.
        row, column = i + rows - 1, j + columns - 1
        for m, n in product(range(height), range(width)):
            if 0 <= row - m < rows and 0 <= column - n < columns:
                y[i, j] += x[m, n] * kernel[row - m, column - n]
    return y


def cross_correlation(x: Array, kernel: Array, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """What networks call a convolution: maps (C, H, W) and kernels (O, C, h, w) -> (O, H', W')."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    rows, columns = ((side - 1) * dilation + 1 for side in kernel.shape[2:])
    y = np.zeros((len(kernel), (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1))
    for o, i, j in np.ndindex(y.shape):
        for c, m, n in np.ndindex(kernel.shape[1:]):
            y[o, i, j] += x[c, i * stride + m * dilation, j * stride + n * dilation] * kernel[o, c, m, n]
    return y


def im2col(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """(C, H, W) -> (C kernel kernel, positions): what each window covers, in a column of its own."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[1:])
    windows = [
        x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel].reshape(-1)
        for i, j in product(range(rows), range(columns))
    ]
    return np.stack(windows, axis=1)


def col2im(patches: Array, shape: tuple[int, int, int], kernel: int, stride: int, padding: int) -> Array:
    """The transpose of `im2col`: every number is added where it was taken from, and the padding cut off."""
    maps, height, width = shape
    x = np.zeros((maps, height + 2 * padding, width + 2 * padding))
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[1:])
    for position, (i, j) in enumerate(product(range(rows), range(columns))):
        window = patches[:, position].reshape(maps, kernel, kernel)
        x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel] += window
    return x[:, padding : padding + height, padding : padding + width]


def shared_weight_gradient(x: Array, error: Array, kernel: int, stride: int, padding: int) -> Array:
    """dE/dw of one kernel in one dimension: the sum over the minibatch and over all positions that use the same weight.

    x (N, W), error (N, W'), the derivative of E by the answer -> (kernel,)
    """
    gradient = np.zeros(kernel)
    for n in range(len(x)):
        for position in range(error.shape[1]):
            for tap in range(kernel):
                source = position * stride - padding + tap
                if 0 <= source < x.shape[1]:  # else it is the padding's zero
                    gradient[tap] += error[n, position] * x[n, source]
    return gradient


def cross_entropy(logits: Array, truth: int) -> float:
    """-log p(truth), with p the softmax of the logits, which are small enough for exp."""
    p = np.exp(logits) / np.exp(logits).sum()
    return float(-np.log(p[truth]))
