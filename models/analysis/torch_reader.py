"""Reads the operations of a PyTorch network by running it on the meta device, which has shapes but no values."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convoy.models.analysis.operators import Act, Graph, Operation, by
from convoy.models.analysis.torch_operators import Arguments, check, describe
from convoy.models.errors import EmptyOutput, ImpossibleLayer

ROOT = "forward"  # for operations in the network's own forward, outside of its modules


def read(network: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Reads the graph of a network on the meta device, in eval mode, for an input of (1, channels, *sides).

    Raises ImpossibleLayer.
    """
    assert not network.training
    image = torch.empty(shape, device="meta")
    watch = _Watch(dict(network.named_parameters()) | moving_statistics(network), image)
    with _layers(network, watch), torch.no_grad(), warnings.catch_warnings(), watch:
        warnings.simplefilter("ignore")  # performance warnings are irrelevant here
        try:
            network(image)
        except RuntimeError as error:  # a case that `check` does not cover; the message is PyTorch's
            raise ImpossibleLayer(f"{watch.layer}: {str(error).splitlines()[0]}") from error
    return Graph(tuple(range(2, len(shape))), watch.operations, _idle(network, watch.idle))


class Count(NamedTuple):
    """`fixed` counts the moving statistics of batch normalisation: a mean and a variance per map, not trained."""

    trainable: int
    fixed: int

    @property
    def total(self) -> int:
        return self.trainable + self.fixed


def count(network: nn.Module) -> Count:
    """Returns the number of parameters in a network, which may be on the meta device."""
    trainable = sum(parameter.numel() for parameter in network.parameters())
    return Count(trainable, sum(statistic.numel() for statistic in moving_statistics(network).values()))


def moving_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Returns the running means and variances of batch normalisation, by name."""
    # Its third buffer only counts batches and does not affect the output.
    return {name: buffer for name, buffer in network.named_buffers() if name.endswith(_STATISTICS)}


_STATISTICS = ("running_mean", "running_var")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records each operation on tensors. Every tensor is either an operation's output, found in `outputs`, or computed
    from parameters alone, found in `sources`. `kept` references them all, so that no id is reused.
    """

    def __init__(self, parameters: dict[str, Tensor], image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        self.idle = dict(self.sizes)  # parameters that no operation has used yet
        self.sources = {id(tensor): frozenset({name}) for name, tensor in parameters.items()}
        self.outputs = {id(image): 0}
        self.kept = [image, *parameters.values()]
        self.operations = [Operation("image", Act("image", shown="never"), (), tuple(image.shape))]
        self.modules: list[tuple[str, nn.Module]] = []

    @property
    def layer(self) -> str:
        return self.modules[-1][0] or ROOT

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = _by_name(func, args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        inputs = [self.outputs[id(tensor)] for tensor in tensors if id(tensor) in self.outputs]
        name = func._schema.name.removeprefix("aten::")
        if inputs:
            check(name, arguments, self.layer)
        output = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.kept += outputs
        used = frozenset[str]().union(*(self.sources.get(id(tensor), ()) for tensor in tensors))
        if not inputs:
            self.sources.update((id(tensor), used) for tensor in outputs)
        elif outputs:
            self._add(describe(func, name, arguments, outputs[0], self.outputs), inputs, outputs, used)
        return output

    def _add(self, act: Act, inputs: list[int], outputs: list[Tensor], used: frozenset[str]) -> None:
        if isinstance(self.modules[-1][1], nn.LocalResponseNorm) and act.shown == "row":
            act = replace(act, kind="response normalisation")
        # A parameter shared by several operations counts for the first.
        parameters = sum(self.idle.pop(name, 0) for name in used)
        self.outputs.update((id(tensor), len(self.operations)) for tensor in outputs)
        self.operations.append(Operation(self.layer, act, tuple(inputs), tuple(outputs[0].shape), parameters))
        if 0 in outputs[0].shape:
            shapes = " and ".join(by(self.operations[index].shape) for index in inputs)
            raise EmptyOutput(f"{self.layer}: nothing is left of {shapes}")


@contextmanager
def _layers(network: nn.Module, watch: _Watch) -> Iterator[None]:
    """Keeps the watch's stack of the modules that are running."""

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


def _by_name(func: Any, args: Any, kwargs: Any) -> Arguments:
    arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
    names = [argument.name for argument in func._schema.arguments]
    return {**arguments, **dict(zip(names, args, strict=False)), **kwargs}
