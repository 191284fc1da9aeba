"""Operations of a network, independent of its source format: the effect of each kind on shape, cost and receptive
field, and a network as a list of operations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from convoy.models.analysis import receptive_field
from convoy.models.analysis.reach import Reach, bins, resized, spread, whole, window
from convoy.models.analysis.receptive_field import Field, Permuted, Reached, Reshaped, Step
from convoy.models.errors import EmptyOutput, ImpossibleLayer

Shape = Sequence[int]

FREE_SIDE = 256  # pixels: the side used for a network of any size if none is given


@dataclass(frozen=True)
class Act:
    """The description of an operation.

    kind           in words
    steps          how output positions depend on input positions; empty if each depends on the same position
    multiply_adds  of convolutions and matrix products, for the whole output, padding included; elementwise work
                   (activations, normalisation, sums, means) counts as 0
    shown          in a table: a row, a row merged with its neighbours in the same layer, a mention, or nothing
    known          whether `steps` are complete; otherwise every output value may depend on all input values
    """

    kind: str
    steps: tuple[Step, ...] = ()
    multiply_adds: int = 0
    shown: Literal["row", "part", "mention", "never"] = "row"
    known: bool = True


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pooling, one number per axis of the image; `after` pads at the end."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]

    def __str__(self) -> str:
        kernel = by(self.kernel)
        stride = f" / {once(self.stride)}" if set(self.stride) != {1} else ""
        dilation = f" dilated {once(self.dilation)}" if set(self.dilation) != {1} else ""
        return kernel + stride + dilation

    def axes(self) -> list[tuple[int, int, int, int, int]]:
        return list(zip(self.kernel, self.stride, self.before, self.after, self.dilation, strict=True))

    def check(self, layer: str, word: str, shape: Shape, ceil: bool = False) -> None:
        """Raises EmptyOutput if the output is empty: floor((i + padding - reach) / stride) + 1 below 1.

        With `ceil` the last window may extend past the end.
        """
        sides = shape[-len(self.kernel) :]
        for side, (kernel, stride, before, after, dilation) in zip(sides, self.axes(), strict=True):
            room = side + before + after - dilation * (kernel - 1) - 1
            if (-(-room // stride) if ceil else room // stride) < 0:
                padding = once([once(pair) for pair in zip(self.before, self.after, strict=True)])
                raise EmptyOutput(
                    f"{layer}: nothing is left by {word} of {by(shape[1:])} with kernel {by(self.kernel)}, "
                    f"stride {once(self.stride)}, padding {padding}"
                    + ("" if set(self.dilation) == {1} else f", dilation {once(self.dilation)}")
                )


def convolution(shape: Shape, new_shape: Shape, windows: Window, groups: int) -> Act:
    """(N, C, *sides) -> (N, C', *sides'), the channels of both in `groups` groups."""
    steps = [
        Reached(dim, window(kernel, stride, before, dilation), new_shape[dim])
        for dim, (kernel, stride, before, _, dilation) in enumerate(windows.axes(), start=2)
    ]
    return Act(
        kind=f"{_grouped(groups, shape[1])}convolution {windows}",
        steps=(_all(1, shape, new_shape[1]), *steps),
        multiply_adds=prod(new_shape) * prod(windows.kernel) * shape[1] // groups,
    )


def check_dense(layer: str, shape: Shape, expected: int, dim: int = -1) -> None:
    """Raises ImpossibleLayer if the input size of a product differs from the size of its weights."""
    if shape[dim] != expected:
        raise ImpossibleLayer(f"{layer}: a dense layer for {expected:,} numbers gets {shape[dim]:,}")


def transposed_convolution(shape: Shape, new_shape: Shape, windows: Window, groups: int) -> Act:
    """Each input value is spread over a kernel of outputs; `before` and `after` are cropped."""
    steps = [
        Reached(dim, spread(kernel, stride, before, dilation), new_shape[dim])
        for dim, (kernel, stride, before, _, dilation) in enumerate(windows.axes(), start=2)
    ]
    return Act(
        kind=f"{_grouped(groups, shape[1])}transposed convolution {windows}",
        steps=(_all(1, shape, new_shape[1]), *steps),
        multiply_adds=prod(shape) * prod(windows.kernel) * new_shape[1] // groups,
    )


def pooling(word: str, new_shape: Shape, windows: Window) -> Act:
    """Describes pooling over the last dimensions."""
    first = len(new_shape) - len(windows.kernel)
    reaches = [window(kernel, stride, before, dilation) for kernel, stride, before, _, dilation in windows.axes()]
    steps = tuple(Reached(dim, reach, new_shape[dim]) for dim, reach in enumerate(reaches, start=first))
    return Act(f"{word} pooling {windows}", steps)


def adaptive_pooling(word: str, shape: Shape, new_shape: Shape) -> Act:
    """Describes pooling with one window per output position, sized by the map."""
    steps = tuple(Reached(dim, bins(shape[dim], new_shape[dim]), new_shape[dim]) for dim in range(2, len(shape)))
    sides = new_shape[2:]
    return Act(f"{word} of each map" if set(sides) == {1} else f"{word} in {by(sides)} bins", steps)


def reduction(word: str, shape: Shape, new_shape: Shape, dims: Sequence[int]) -> Act:
    """Describes a reduction of each of `dims` to one value, with the dimension kept or removed."""
    steps: list[Step] = [_all(dim % len(shape), shape, 1) for dim in dims]
    if len(new_shape) < len(shape):
        steps.append(Reshaped(tuple(new_shape)))
    return Act(word, tuple(steps), shown="part")


def dense(shape: Shape, new_shape: Shape, dim: int = -1) -> Act:
    """Describes a product with a weight matrix that sums along `dim`."""
    dim %= len(shape)
    return Act(
        kind="dense" if len(shape) == 2 else "matrix product",
        steps=(_all(dim, shape, new_shape[dim]),),
        multiply_adds=prod(new_shape) * shape[dim],
    )


def product(new_shape: Shape, summed: int) -> Act:
    """Describes a product of two matrices that both depend on the image, or one that reorders positions."""
    return Act("matrix product", multiply_adds=prod(new_shape) * summed, known=False)


def along(word: str, shape: Shape, dims: Sequence[int]) -> Act:
    """Describes operations in which each output depends on all values along `dims`: softmax, layer normalisation."""
    return Act(word, tuple(_all(dim % len(shape), shape, shape[dim]) for dim in dims), shown="mention")


def upsampling(word: str, shape: Shape, new_shape: Shape, taps: int, corners: bool) -> Act:
    steps = tuple(
        Reached(dim, resized(shape[dim], new_shape[dim], taps, corners), new_shape[dim])
        for dim in range(2, len(shape))
        if shape[dim] != new_shape[dim]
    )
    return Act(f"{word} interpolation", steps)


def patches(shape: Shape, new_shape: Shape, windows: Window, sides: Shape) -> Act:
    """(N, C, H, W) -> (N, C kernel, positions): each window's values as a column."""
    reaches = [
        Reached(dim, window(kernel, stride, before, dilation), side)
        for dim, side, (kernel, stride, before, _, dilation) in zip((2, 3), sides, windows.axes(), strict=True)
    ]
    return Act("patches", (_all(1, shape, new_shape[1]), *reaches, Reshaped(tuple(new_shape))), shown="never")


def moved(*steps: Step) -> Act:
    """Describes an operation without arithmetic that only moves values."""
    return Act("move", steps, shown="never")


def permuted(order: Sequence[int]) -> Act:
    return moved(Permuted(tuple(dim % len(order) for dim in order)))


def reshaped(new_shape: Shape) -> Act:
    return moved(Reshaped(tuple(new_shape)))


def shifted(dim: int, start: int, step: int, size: int) -> Reached:
    """Selects the positions `start`, `start + step` and so on along a dimension; a negative `start` pads."""
    return Reached(dim, window(1, step, -start), size)


def blocks(shape: Shape, new_shape: Shape, size: int, down: bool) -> Act:
    """Space to depth (`down`) or depth to space, in blocks of `size` x `size`."""
    reach: Reach = window(size, size) if down else spread(size, size)
    steps = [Reached(dim, reach, new_shape[dim]) for dim in (2, 3)]
    return moved(_all(1, shape, new_shape[1]), *steps)


def by(numbers: Sequence[object]) -> str:
    """Formats sizes as 2x3."""
    return "x".join(map(str, numbers))


def once(numbers: Sequence[object]) -> str:
    """Formats numbers as 2x3, or as one number if all are equal."""
    return str(numbers[0]) if len(set(numbers)) == 1 else by(numbers)


@dataclass(frozen=True)
class Operation:
    """One operation.

    layer       the module it belongs to, or its name in the file
    inputs      indices of the operations whose outputs it uses
    shape       of its output
    parameters  number of parameters it uses that no earlier operation uses
    """

    layer: str
    act: Act
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: int = 0


@dataclass(frozen=True)
class Graph:
    """`operations[0]` is the image; `axes` are the dimensions that are its spatial axes. `idle` counts the parameters
    that no operation uses, by their module."""

    axes: tuple[int, ...]
    operations: list[Operation]
    idle: dict[str, int] = field(default_factory=dict)


def receptive_fields(graph: Graph) -> list[Field]:
    """Returns the receptive field of each operation's output."""
    fields = [receptive_field.of_image(graph.operations[0].shape, graph.axes)]
    for operation in graph.operations[1:]:
        fields.append(_receptive_field(operation, [fields[index] for index in operation.inputs]))
    return fields


def _all(dim: int, shape: Shape, size: int) -> Reached:
    return Reached(dim, whole(shape[dim]), size)


def _grouped(groups: int, channels: int) -> str:
    if groups == 1:
        return ""
    return "depthwise " if groups == channels else f"grouped ({groups}) "


def _receptive_field(operation: Operation, inputs: list[Field]) -> Field:
    act = operation.act
    if not act.known:
        return receptive_field.everything(inputs, operation.shape)
    if not act.steps:
        return receptive_field.merged(inputs, operation.shape)
    assert len(inputs) == 1
    (result,) = inputs
    for step in act.steps:
        result = receptive_field.after(result, step)
    return result
