"""Receptive fields of tensors inside a network, tracked through permuted, merged and split dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from convoy.models.analysis.reach import ITSELF, Reach, spread, union, whole, window


class Factor(NamedTuple):
    """A factor of a dimension: `size` positions that follow an axis of the image, or none (None)."""

    size: int
    axis: int | None = None


@dataclass(frozen=True)
class Field:
    """The receptive field of one tensor.

    dims    the factors of each dimension, slowest first; a flattened dimension has several
    fields  for each axis of the image, the positions that this tensor's positions depend on
    """

    dims: tuple[tuple[Factor, ...], ...]
    fields: tuple[Reach, ...]


class Reached(NamedTuple):
    """Each position along a dimension depends on positions of the previous map; `size` is the new size."""

    dim: int
    reach: Reach
    size: int


class Permuted(NamedTuple):
    order: tuple[int, ...]


class Reshaped(NamedTuple):
    shape: tuple[int, ...]


Step = Reached | Permuted | Reshaped


def of_image(shape: Sequence[int], axes: Sequence[int]) -> Field:
    """Returns the field of the image itself; `axes` are the dimensions that are its spatial axes."""
    dims = tuple((Factor(size, axes.index(dim) if dim in axes else None),) for dim, size in enumerate(shape))
    return Field(dims, (ITSELF,) * len(axes))


def after(sight: Field, step: Step) -> Field:
    """Returns the field of a step's output, given the field of its input."""
    match step:
        case Reached(dim, reach, size):
            return _reached(sight, dim, reach, size)
        case Permuted(order):
            return replace(sight, dims=tuple(sight.dims[dim] for dim in order))
        case Reshaped(shape):
            return _reshaped(sight, shape)


def merged(sights: Sequence[Field], shape: Sequence[int]) -> Field:
    """Returns the field of an output of `shape` computed elementwise from the inputs.

    Along a dimension where an input has another size, because of broadcasting or concatenation, each output value
    counts as depending on the whole dimension.
    """
    aligned = [_fitted(sight, shape) for sight in sights]
    for dim in range(len(shape)):
        layouts = {sight.dims[dim] for sight in aligned if _axes(sight.dims[dim])}
        if len(layouts) > 1:
            aligned = [_blurred(sight, dim) for sight in aligned]
    dims = tuple(_layout([sight.dims[dim] for sight in aligned], size) for dim, size in enumerate(shape))
    sides = {factor.axis: factor.size for dim in dims for factor in dim}
    fields = tuple(
        union([sight.fields[axis] for sight in aligned], sides.get(axis, 1)) for axis in range(len(sights[0].fields))
    )
    # If one branch depends on the whole axis, so does the output, and positions no longer follow it.
    still = {axis for axis, field in enumerate(fields) if field.jump == 0}
    return Field(tuple(tuple(f._replace(axis=None) if f.axis in still else f for f in dim) for dim in dims), fields)


def everything(sights: Sequence[Field], shape: Sequence[int]) -> Field:
    """Returns the field of an output of `shape` in which every value may depend on all input values."""
    blurred = []
    for sight in sights:
        for dim in range(len(sight.dims)):
            sight = _blurred(sight, dim)  # noqa: PLW2901
        blurred.append(sight)
    fields = tuple(union(list(branches), 1) for branches in zip(*(sight.fields for sight in blurred), strict=True))
    return Field(tuple((Factor(size),) for size in shape), fields)


def _reached(sight: Field, dim: int, reach: Reach, size: int) -> Field:
    sight = _single(sight, dim)
    (factor,) = sight.dims[dim]
    if factor.axis is None:
        return _with(sight, dim, (Factor(size),))
    sight = _composed(sight, factor.axis, reach)
    return _with(sight, dim, (Factor(size, factor.axis if reach.jump else None),))


def _single(sight: Field, dim: int) -> Field:
    """Merges the dimension into one factor; if that is impossible, the field covers all of it."""
    factors = [factor for factor in sight.dims[dim] if factor.size > 1 or factor.axis is not None]
    size = prod(factor.size for factor in factors)
    axes = _axes(factors)
    if len(axes) != 1 or factors[0].axis is None:
        sight = _blurred(sight, dim)
        return _with(sight, dim, (Factor(size),))
    # Several adjacent positions belong to one position of the axis.
    inner = size // factors[0].size
    return _with(_composed(sight, factors[0].axis, spread(inner, inner)), dim, (Factor(size, factors[0].axis),))


def _reshaped(sight: Field, shape: Sequence[int]) -> Field:
    for factor in [factor for dim in sight.dims for factor in dim]:
        if factor.size == 1 and factor.axis is not None:
            sight = _composed(sight, factor.axis, whole(1))
    # A factor of size 1 no longer follows an axis: after the reshape it could be anywhere.
    left = [factor for dim in sight.dims for factor in dim if factor.size > 1]
    dims = []
    for size in shape:
        merged: list[Factor] = []
        missing = size
        while missing > 1:
            factor = left.pop(0)
            if missing % factor.size:
                if factor.size % missing:
                    return everything([sight], shape)
                sight, factor, rest = _split(sight, factor, missing)
                left.insert(0, rest)
            merged.append(factor)
            missing //= factor.size
        dims.append(merged or [Factor(1)])
    return replace(sight, dims=tuple(map(tuple, dims)))


def _split(sight: Field, factor: Factor, outer: int) -> tuple[Field, Factor, Factor]:
    inner = factor.size // outer
    if factor.axis is not None:
        sight = _composed(sight, factor.axis, window(inner, inner))
    return sight, Factor(outer, factor.axis), Factor(inner)


def _fitted(sight: Field, shape: Sequence[int]) -> Field:
    missing = len(shape) - len(sight.dims)
    sight = replace(sight, dims=((Factor(1),),) * missing + sight.dims)
    for dim, size in enumerate(shape):
        if prod(factor.size for factor in sight.dims[dim]) != size:
            sight = _blurred(sight, dim)
    return sight


def _blurred(sight: Field, dim: int) -> Field:
    """Extends the field to all positions along the dimension."""
    for factor in sight.dims[dim]:
        if factor.axis is not None:
            sight = _composed(sight, factor.axis, whole(factor.size))
    return _with(sight, dim, tuple(factor._replace(axis=None) for factor in sight.dims[dim]))


def _composed(sight: Field, axis: int, reach: Reach) -> Field:
    fields = tuple(field.compose(reach) if axis == index else field for index, field in enumerate(sight.fields))
    return replace(sight, fields=fields)


def _with(sight: Field, dim: int, factors: tuple[Factor, ...]) -> Field:
    return replace(sight, dims=(*sight.dims[:dim], factors, *sight.dims[dim + 1 :]))


def _layout(layouts: list[tuple[Factor, ...]], size: int) -> tuple[Factor, ...]:
    return next((layout for layout in layouts if _axes(layout)), (Factor(size),))


def _axes(factors: Sequence[Factor]) -> list[int]:
    return [factor.axis for factor in factors if factor.axis is not None]
