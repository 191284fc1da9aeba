"""The layers of a network by name, and their outputs while it runs."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convoy.models.analysis.operators import by
from convoy.models.errors import BadView, ImpossibleLayer
from convoy.models.visualize.subjects import Size, Subject
from convoy.service.errors import meant

NEAR = 8  # layer names in an error message


@dataclass(frozen=True)
class Layer:
    """A module that runs. `shape` is that of its output for one picture: (channels, *sides), or (channels,)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    module: nn.Module

    @property
    def is_map(self) -> bool:
        return len(self.shape) > 1


def layers(subject: Subject, size: Size) -> list[Layer]:
    """Returns every module with an output of maps or numbers for a picture of `size`, containers included, in the order
    in which they finish. Raises BadView if the network does not accept the picture."""
    layers_by_name: dict[str, Layer] = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if name not in layers_by_name and output.dim() in (2, 2 + subject.sides):
            layers_by_name[name] = Layer(name, type(module).__name__, tuple(output.shape[1:]), module)

    with torch.no_grad(), _hooks(dict(subject.network.named_modules()), note):
        logits(subject, torch.zeros(1, *size, len(subject.mean)))
    return list(layers_by_name.values())


def layer_of(name: str, layers: Sequence[Layer]) -> Layer:
    """Returns the layer of that name. Raises BadView, listing the layers, similar names first."""
    for layer in layers:
        if layer.name == name:
            return layer
    known = nearest(name, layers)
    raise BadView(f"there is no layer {name!r}; there are {known}{meant(name, [each.name for each in layers])}")


def nearest(name: str, layers: Sequence[Layer]) -> str:
    """Returns layer names for an error message, similar to `name` first, and the number of others."""
    names = [layer.name for layer in layers]
    near = [other for other in names if name in other]
    near += [other for other in difflib.get_close_matches(name, names, NEAR, 0.4) if other not in near]
    listed = (near + [other for other in names if other not in near])[:NEAR]
    left = len(names) - len(listed)
    rest = f" and {left} more, which 'convoy visualize layers' lists" if left else ""
    return f"{', '.join(listed)}{rest}"


def outputs_of(subject: Subject, names: Sequence[str], pictures: Tensor) -> dict[str, Tensor]:
    """Returns the outputs of layers for pictures, (N, channels, *sides) or (N, channels) each. Gradients flow through.

    The network stops after the last of these layers, so later layers may require another picture size. For a layer that
    runs several times, the first output is returned. Raises BadView if the network fails before.
    """
    with watch(subject, names, stop=True) as outputs:
        logits(subject, pictures)
    return outputs


def logits(subject: Subject, pictures: Tensor) -> Tensor:
    """Returns the network's output, (N, classes), or (N, classes, h, w) with the padding. Raises BadView."""
    try:
        output: Tensor = subject.network(subject.as_input(pictures))
    except (RuntimeError, ValueError, ImpossibleLayer) as error:  # torch's and the networks' errors for an invalid size
        size, own = by(pictures.shape[1:3]), by(subject.size())
        raise BadView(
            f"{subject.name} does not accept images of {size}, only such as {own} ({_line(error)})"
        ) from error
    return output


@contextmanager
def watch(subject: Subject, names: Sequence[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Within this context, every run of the network stores the outputs of these layers in the dictionary; with `stop`,
    a run ends once it has them all."""
    modules = dict(subject.network.named_modules())
    outputs: dict[str, Tensor] = {}

    def note(name: str, _: nn.Module, output: Tensor) -> None:
        outputs.setdefault(name, output)
        if stop and len(outputs) == len(names):
            raise _Reached

    with _hooks({name: modules[name] for name in names}, note), suppress(_Reached):
        yield outputs


class _Reached(Exception):
    """The network has run far enough."""


@contextmanager
def _hooks(modules: dict[str, nn.Module], note: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def record(module: nn.Module, _: Any, output: Any) -> Any:
            # For a pooling layer that also returns its winners, the values.
            first, *more = output if isinstance(output, tuple) else (output,)
            note(name, module, first)
            # The network continues with a copy, because ReLUs modify their input in place.
            return (first.clone(), *more) if more else first.clone()

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
