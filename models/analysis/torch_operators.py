"""Describes PyTorch operators as `Act` values. Names are ATen's, without `aten::`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convoy.models.analysis import operators
from convoy.models.analysis.operators import Act, Window
from convoy.models.analysis.reach import whole, window
from convoy.models.analysis.receptive_field import Reached, Reshaped
from convoy.models.errors import ImpossibleLayer

Arguments = dict[str, Any]  # arguments of an operator by name


def check(name: str, arguments: Arguments, layer: str) -> None:
    """Raises ImpossibleLayer for incompatible sizes, before PyTorch runs the operator."""
    match name:
        case "convolution" if not arguments["transposed"]:
            x, weight = arguments["input"], arguments["weight"]
            _convolution_window(arguments).check(layer, "a convolution", x.shape)
            if x.shape[1] != weight.shape[1] * arguments["groups"]:
                expected = weight.shape[1] * arguments["groups"]
                raise ImpossibleLayer(f"{layer}: a convolution of {expected:,} maps gets {x.shape[1]:,}")
        case "addmm":
            operators.check_dense(layer, arguments["mat1"].shape, arguments["mat2"].shape[0])
        case "mm" | "bmm":
            operators.check_dense(layer, arguments["self"].shape, arguments["mat2"].shape[-2])
        case "im2col":
            _patch_window(arguments).check(layer, "patches", arguments["self"].shape)
        case _ if name in _POOLINGS:
            word = f"{_POOLINGS[name]} pooling"
            _pool_window(arguments, name).check(layer, word, arguments["self"].shape, arguments["ceil_mode"])


def describe(func: Any, name: str, arguments: Arguments, output: Tensor, outputs: dict[int, int]) -> Act:
    """Describes the operator; `outputs` contains the tensors that depend on the image."""
    shape = tuple(output.shape)
    if name in _PRODUCTS:
        return _product(name, arguments, shape, outputs)
    if name in _POOLINGS:
        return operators.pooling(_POOLINGS[name], shape, _pool_window(arguments, name))
    if name in _ACTS:
        return _ACTS[name](arguments, shape)
    if torch.Tag.pointwise in func.tags or name.rstrip("_") in _POINTWISE:
        return Act(name.rstrip("_"), shown="mention")
    return Act(name, known=False)


def _product(name: str, arguments: Arguments, shape: tuple[int, ...], outputs: dict[int, int]) -> Act:
    left, right = (arguments["mat1"], arguments["mat2"]) if name == "addmm" else (arguments["self"], arguments["mat2"])
    match id(left) in outputs, id(right) in outputs:
        case True, False:
            return operators.dense(left.shape, shape)
        case False, True:
            return operators.dense(right.shape, shape, dim=-2)
    return operators.product(shape, left.shape[-1])


def _convolution(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    describe = operators.transposed_convolution if arguments["transposed"] else operators.convolution
    return describe(arguments["input"].shape, shape, _convolution_window(arguments), arguments["groups"])


def _convolution_window(arguments: Arguments) -> Window:
    kernel = arguments["weight"].shape[2:]
    return _window(kernel, arguments["stride"], arguments["padding"], arguments["dilation"])


def _pool_window(arguments: Arguments, name: str) -> Window:
    axes = int(name[name.index("d") - 1])
    kernel = _full(arguments["kernel_size"], axes)
    return _window(kernel, arguments["stride"] or kernel, arguments["padding"], arguments.get("dilation", 1))


def _patch_window(arguments: Arguments) -> Window:
    return _window(arguments["kernel_size"], arguments["stride"], arguments["padding"], arguments["dilation"])


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    axes = len(kernel)
    before = _full(padding, axes)
    return Window(tuple(kernel), _full(stride, axes), before, before, _full(dilation, axes))


def _full(value: Any, axes: int) -> tuple[int, ...]:
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(numbers * axes if len(numbers) == 1 else numbers)


def _patches(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    x, windows = arguments["self"], _patch_window(arguments)
    sides = [
        (side + before + after - dilation * (kernel - 1) - 1) // stride + 1
        for side, (kernel, stride, before, after, dilation) in zip(x.shape[2:], windows.axes(), strict=True)
    ]
    return operators.patches(x.shape, shape, windows, sides)


def _reduction(word: str) -> Callable[[Arguments, tuple[int, ...]], Act]:
    def describe(arguments: Arguments, shape: tuple[int, ...]) -> Act:
        x = arguments["self"]
        dims = arguments.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(x.dim())
        return operators.reduction(word, x.shape, shape, list(dims))

    return describe


def _adaptive_pooling(word: str) -> Callable[[Arguments, tuple[int, ...]], Act]:
    return lambda arguments, shape: operators.adaptive_pooling(word, arguments["self"].shape, shape)


def _padding(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    pad = arguments["pad"]
    # Pairs of (before, after), the last dimension first.
    first = {len(shape) - 1 - index: pad[2 * index] for index in range(len(pad) // 2)}
    return operators.moved(*(operators.shifted(dim, -before, 1, shape[dim]) for dim, before in sorted(first.items())))


def _slice(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    x, dim = arguments["self"], arguments["dim"] % len(shape)
    start = min(arguments["start"] or 0, x.shape[dim])
    start = start + x.shape[dim] if start < 0 else start
    return operators.moved(operators.shifted(dim, start, arguments["step"], shape[dim]))


def _select(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    dim, index = arguments["dim"] % (len(shape) + 1), arguments["index"] % arguments["self"].shape[arguments["dim"]]
    return operators.moved(Reached(dim, window(1, before=-index), 1), Reshaped(shape))


def _split(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    # Its outputs are not distinguished, so each counts as depending on the whole dimension.
    dim = arguments["dim"] % len(shape)
    return operators.moved(Reached(dim, whole(arguments["self"].shape[dim]), shape[dim]))


def _transpose(arguments: Arguments, shape: tuple[int, ...]) -> Act:
    order = list(range(len(shape)))
    first, second = (0, 1) if "dim0" not in arguments else (arguments["dim0"], arguments["dim1"])
    order[first], order[second] = order[second], order[first]
    return operators.permuted(order)


def _upsampling(word: str, taps: int) -> Callable[[Arguments, tuple[int, ...]], Act]:
    return lambda arguments, shape: operators.upsampling(
        word, arguments["self"].shape, shape, taps, bool(arguments.get("align_corners"))
    )


_PRODUCTS = ("addmm", "mm", "bmm")
_POOLINGS = {
    "max_pool2d_with_indices": "max",
    "max_pool3d_with_indices": "max",
    "avg_pool2d": "mean",
    "avg_pool3d": "mean",
}
# Pointwise with respect to the image, though PyTorch does not tag them so.
_POINTWISE = ("where", "masked_fill", "hardtanh", "relu", "threshold", "leaky_relu", "elu", "prelu")
_NORMALISATIONS = ("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training")
_ACTS: dict[str, Callable[[Arguments, tuple[int, ...]], Act]] = {
    "convolution": _convolution,
    "im2col": _patches,
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), _adaptive_pooling("mean")),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_pooling("maximum")),
    **dict.fromkeys(_NORMALISATIONS, lambda *_: Act("batch normalisation")),
    "native_layer_norm": lambda arguments, shape: operators.along(
        "layer normalisation", shape, range(-len(arguments["normalized_shape"]), 0)
    ),
    "native_group_norm": lambda _, shape: operators.along("group normalisation", shape, range(1, len(shape))),
    "_softmax": lambda arguments, shape: operators.along("softmax", shape, [arguments["dim"]]),
    "_log_softmax": lambda arguments, shape: operators.along("softmax", shape, [arguments["dim"]]),
    "mean": _reduction("mean"),
    "sum": _reduction("sum"),
    "amax": _reduction("maximum"),
    "amin": _reduction("minimum"),
    "max": _reduction("maximum"),
    "argmax": _reduction("argmax"),
    "cat": lambda *_: Act("concatenation", shown="part"),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), _upsampling("nearest", 1)),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _upsampling("linear", 2)),
    "upsample_bicubic2d": _upsampling("cubic", 4),
    "pixel_unshuffle": lambda arguments, shape: operators.blocks(
        arguments["self"].shape, shape, arguments["downscale_factor"], down=True
    ),
    "pixel_shuffle": lambda arguments, shape: operators.blocks(
        arguments["self"].shape, shape, arguments["upscale_factor"], down=False
    ),
    "constant_pad_nd": _padding,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "transpose": _transpose,
    "t": _transpose,
    "permute": lambda arguments, _: operators.permuted(arguments["dims"]),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"),
        lambda _, shape: operators.reshaped(shape),
    ),
    **dict.fromkeys(("alias", "detach", "contiguous", "clone", "expand", "_to_copy"), lambda *_: operators.moved()),
}
