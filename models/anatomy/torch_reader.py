"""The operations of a PyTorch network, watched while it runs on the meta device, which has shapes and no numbers."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.anatomy import act
from models.anatomy.act import Act, Window
from models.anatomy.operation import Graph, Operation
from models.anatomy.reach import whole, window
from models.anatomy.sight import Reached, Reshaped
from models.errors import ImpossibleLayer
from models.parameters import moving_statistics

ROOT = "forward"  # what the network's own forward does outside of its modules
Given = dict[str, Any]  # an operation's arguments by name


def read(network: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The graph of a network on the meta device, in eval mode, for an input of (1, channels, *sides).

    Raises ImpossibleLayer.
    """
    assert not network.training
    image = torch.empty(shape, device="meta")
    watch = _Watch(dict(network.named_parameters()) | moving_statistics(network), image)
    with _layers(network, watch), torch.no_grad(), warnings.catch_warnings(), watch:
        warnings.simplefilter("ignore")  # how PyTorch would run it does not matter here
        try:
            network(image)
        except RuntimeError as error:  # what `_check` does not foresee, in PyTorch's own words
            raise ImpossibleLayer(f"{watch.layer}: {str(error).splitlines()[0]}") from error
    return Graph(tuple(range(2, len(shape))), watch.operations, _idle(network, watch.idle))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each operation on tensors. Every tensor is either an operation's answer, found in `answers`, or made
    of parameters alone, found in `made_of`; `kept` holds them all, for a tensor that goes would leave its id to others.
    """

    def __init__(self, parameters: dict[str, Tensor], image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        self.idle = dict(self.sizes)  # what no operation has used so far
        self.made_of = {id(tensor): frozenset({name}) for name, tensor in parameters.items()}
        self.answers = {id(image): 0}
        self.kept = [image, *parameters.values()]
        self.operations = [Operation("image", Act("image", shown="never"), (), tuple(image.shape))]
        self.modules: list[tuple[str, nn.Module]] = []

    @property
    def layer(self) -> str:
        return self.modules[-1][0] or ROOT

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _by_name(func, args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        inputs = [self.answers[id(tensor)] for tensor in tensors if id(tensor) in self.answers]
        name = func._schema.name.removeprefix("aten::")
        if inputs:
            _check(name, given, self.layer)
        answer = func(*args, **(kwargs or {}))
        answers = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
        self.kept += answers
        used = frozenset[str]().union(*(self.made_of.get(id(tensor), ()) for tensor in tensors))
        if not inputs:
            self.made_of.update((id(tensor), used) for tensor in answers)
        elif answers:
            self._add(_act(func, name, given, answers[0], self.answers), inputs, answers, used)
        return answer

    def _add(self, done: Act, inputs: list[int], answers: list[Tensor], used: frozenset[str]) -> None:
        if isinstance(self.modules[-1][1], nn.LocalResponseNorm) and done.shown == "row":
            done = replace(done, kind="response normalisation")
        # A parameter that several operations share is the first one's.
        parameters = sum(self.idle.pop(name, 0) for name in used)
        self.answers.update((id(tensor), len(self.operations)) for tensor in answers)
        self.operations.append(Operation(self.layer, done, tuple(inputs), tuple(answers[0].shape), parameters))
        if 0 in answers[0].shape:
            shapes = " and ".join(act.by(self.operations[index].shape) for index in inputs)
            raise ImpossibleLayer(f"{self.layer}: nothing is left of {shapes}")


@contextmanager
def _layers(network: nn.Module, watch: _Watch) -> Iterator[None]:
    """Tells the watch in which module the network is."""

    def enter(name: str) -> Callable[..., None]:
        return lambda module, _: watch.modules.append((name, module))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(enter(name)))
            hooks.enter_context(module.register_forward_hook(lambda *_: watch.modules.pop() and None))
        yield


def _idle(network: nn.Module, idle: dict[str, int]) -> dict[str, int]:
    modules: dict[str, int] = defaultdict(int)
    for name, size in idle.items():
        modules[name.partition(".")[0]] += size
    return dict(modules)


def _by_name(func: Any, args: Any, kwargs: Any) -> Given:
    given = {argument.name: argument.default_value for argument in func._schema.arguments}
    names = [argument.name for argument in func._schema.arguments]
    return {**given, **dict(zip(names, args, strict=False)), **kwargs}


def _check(name: str, given: Given, layer: str) -> None:
    match name:
        case "convolution" if not given["transposed"]:
            x, weight = given["input"], given["weight"]
            _convolution_window(given).check(layer, "a convolution", x.shape)
            if x.shape[1] != weight.shape[1] * given["groups"]:
                wanted = weight.shape[1] * given["groups"]
                raise ImpossibleLayer(f"{layer}: a convolution of {wanted:,} maps gets {x.shape[1]:,}")
        case "addmm":
            act.check_dense(layer, given["mat1"].shape, given["mat2"].shape[0])
        case "mm" | "bmm":
            act.check_dense(layer, given["self"].shape, given["mat2"].shape[-2])
        case "im2col":
            _patch_window(given).check(layer, "patches", given["self"].shape)
        case _ if name in _POOLINGS:
            word = f"{_POOLINGS[name]} pooling"
            _pool_window(given, name).check(layer, word, given["self"].shape, given["ceil_mode"])


def _act(func: Any, name: str, given: Given, answer: Tensor, answers: dict[int, int]) -> Act:
    """What the operation does to the tensors of `answers`, which are made of the image."""
    shape = tuple(answer.shape)
    if name in _PRODUCTS:
        return _product(name, given, shape, answers)
    if name in _POOLINGS:
        return act.pooling(_POOLINGS[name], shape, _pool_window(given, name))
    if name in _ACTS:
        return _ACTS[name](given, shape)
    if torch.Tag.pointwise in func.tags or name.rstrip("_") in _POINTWISE:
        return act.pointwise(name.rstrip("_"))
    return act.unknown(name)


def _product(name: str, given: Given, shape: tuple[int, ...], answers: dict[int, int]) -> Act:
    left, right = (given["mat1"], given["mat2"]) if name == "addmm" else (given["self"], given["mat2"])
    match id(left) in answers, id(right) in answers:
        case True, False:
            return act.dense(left.shape, shape)
        case False, True:
            return act.dense(right.shape, shape, dim=-2)
    return act.product(shape, left.shape[-1])


def _convolution(given: Given, shape: tuple[int, ...]) -> Act:
    describe = act.transposed_convolution if given["transposed"] else act.convolution
    return describe(given["input"].shape, shape, _convolution_window(given), given["groups"])


def _convolution_window(given: Given) -> Window:
    kernel = given["weight"].shape[2:]
    return _window(kernel, given["stride"], given["padding"], given["dilation"])


def _pool_window(given: Given, name: str) -> Window:
    axes = int(name[name.index("d") - 1])
    kernel = _full(given["kernel_size"], axes)
    return _window(kernel, given["stride"] or kernel, given["padding"], given.get("dilation", 1))


def _patch_window(given: Given) -> Window:
    return _window(given["kernel_size"], given["stride"], given["padding"], given["dilation"])


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    axes = len(kernel)
    before = _full(padding, axes)
    return Window(tuple(kernel), _full(stride, axes), before, before, _full(dilation, axes))


def _full(value: Any, axes: int) -> tuple[int, ...]:
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(numbers * axes if len(numbers) == 1 else numbers)


def _patches(given: Given, shape: tuple[int, ...]) -> Act:
    x, windows = given["self"], _patch_window(given)
    sides = [
        (side + before + after - dilation * (kernel - 1) - 1) // stride + 1
        for side, (kernel, stride, before, after, dilation) in zip(x.shape[2:], windows.rows(), strict=True)
    ]
    return act.patches(x.shape, shape, windows, sides)


def _reduction(word: str) -> Callable[[Given, tuple[int, ...]], Act]:
    def describe(given: Given, shape: tuple[int, ...]) -> Act:
        x = given["self"]
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(x.dim())
        return act.reduction(word, x.shape, shape, list(dims))

    return describe


def _padding(given: Given, shape: tuple[int, ...]) -> Act:
    pad = given["pad"]
    # Pairs of (before, after), the last dimension first.
    first = {len(shape) - 1 - index: pad[2 * index] for index in range(len(pad) // 2)}
    return act.moved(*(act.shifted(dim, -before, 1, shape[dim]) for dim, before in sorted(first.items())))


def _slice(given: Given, shape: tuple[int, ...]) -> Act:
    x, dim = given["self"], given["dim"] % len(shape)
    start = min(given["start"] or 0, x.shape[dim])
    start = start + x.shape[dim] if start < 0 else start
    return act.moved(act.shifted(dim, start, given["step"], shape[dim]))


def _select(given: Given, shape: tuple[int, ...]) -> Act:
    dim, index = given["dim"] % (len(shape) + 1), given["index"] % given["self"].shape[given["dim"]]
    return act.moved(Reached(dim, window(1, before=-index), 1), Reshaped(shape))


def _split(given: Given, shape: tuple[int, ...]) -> Act:
    # Its answers are told apart by nothing here: each counts as seeing the whole dimension.
    dim = given["dim"] % len(shape)
    return act.moved(Reached(dim, whole(given["self"].shape[dim]), shape[dim]))


def _transpose(given: Given, shape: tuple[int, ...]) -> Act:
    order = list(range(len(shape)))
    first, second = (0, 1) if "dim0" not in given else (given["dim0"], given["dim1"])
    order[first], order[second] = order[second], order[first]
    return act.permuted(order)


def _upsampling(word: str, taps: int) -> Callable[[Given, tuple[int, ...]], Act]:
    def describe(given: Given, shape: tuple[int, ...]) -> Act:
        return act.upsampling(word, given["self"].shape, shape, taps, bool(given.get("align_corners")))

    return describe


_PRODUCTS = ("addmm", "mm", "bmm")
_POOLINGS = {
    "max_pool2d_with_indices": "max",
    "max_pool3d_with_indices": "max",
    "avg_pool2d": "mean",
    "avg_pool3d": "mean",
}
# What PyTorch does not mark as pointwise, though it is where an image is concerned alone.
_POINTWISE = ("where", "masked_fill", "hardtanh", "relu", "threshold", "leaky_relu", "elu", "prelu")
_NORMALISATIONS = ("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training")
_ACTS: dict[str, Callable[[Given, tuple[int, ...]], Act]] = {
    "convolution": _convolution,
    "im2col": _patches,
    "_adaptive_avg_pool2d": lambda given, shape: act.adaptive_pooling("mean", given["self"].shape, shape),
    "_adaptive_avg_pool3d": lambda given, shape: act.adaptive_pooling("mean", given["self"].shape, shape),
    "adaptive_max_pool2d": lambda given, shape: act.adaptive_pooling("maximum", given["self"].shape, shape),
    "adaptive_max_pool3d": lambda given, shape: act.adaptive_pooling("maximum", given["self"].shape, shape),
    **dict.fromkeys(_NORMALISATIONS, lambda *_: act.normalisation("batch normalisation")),
    "native_layer_norm": lambda given, shape: act.along(
        "layer normalisation", shape, range(-len(given["normalized_shape"]), 0)
    ),
    "native_group_norm": lambda _, shape: act.along("group normalisation", shape, range(1, len(shape))),
    "_softmax": lambda given, shape: act.along("softmax", shape, [given["dim"]]),
    "_log_softmax": lambda given, shape: act.along("softmax", shape, [given["dim"]]),
    "mean": _reduction("mean"),
    "sum": _reduction("sum"),
    "amax": _reduction("maximum"),
    "amin": _reduction("minimum"),
    "max": _reduction("maximum"),
    "argmax": _reduction("argmax"),
    "cat": lambda given, shape: act.concatenation(given["dim"], len(shape)),
    "upsample_nearest1d": _upsampling("nearest", 1),
    "upsample_nearest2d": _upsampling("nearest", 1),
    "upsample_nearest3d": _upsampling("nearest", 1),
    "upsample_linear1d": _upsampling("linear", 2),
    "upsample_bilinear2d": _upsampling("linear", 2),
    "upsample_trilinear3d": _upsampling("linear", 2),
    "upsample_bicubic2d": _upsampling("cubic", 4),
    "pixel_unshuffle": lambda given, shape: act.blocks(
        given["self"].shape, shape, given["downscale_factor"], down=True
    ),
    "pixel_shuffle": lambda given, shape: act.blocks(given["self"].shape, shape, given["upscale_factor"], down=False),
    "constant_pad_nd": _padding,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "transpose": _transpose,
    "t": _transpose,
    "permute": lambda given, _: act.permuted(given["dims"]),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"),
        lambda _, shape: act.reshaped(shape),
    ),
    **dict.fromkeys(("alias", "detach", "contiguous", "clone", "expand", "_to_copy"), lambda *_: act.moved()),
}
