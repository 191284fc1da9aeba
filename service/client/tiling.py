"""Where the tiles of a large picture lie: what of it each contains, and what of its mask is used.

Plain functions. A tile contains real pixels around the part that is used, its halo. If the halo is as wide as the
receptive field and the tile begins at a multiple of the network's stride, the part has the very mask of the whole
picture; at the picture's border the tile ends there, so the network pads it as it pads the whole picture. Without a
receptive field, the halo is a choice, neighbouring parts overlap by it, and the more confident tile wins.
"""

from collections.abc import Iterator, Sequence
from math import lcm
from typing import NamedTuple

from convoy.service.client.results import Context, Model
from convoy.service.errors import BadRequest

SIDE = 1024  # pixels, of a tile if nobody chooses
LARGEST = 2048  # so chosen; a server accepts as much by default
HALO = 128  # pixels, for networks without a receptive field
MOST_SIDE = 65_535


class Span(NamedTuple):
    """A tile along one axis, in pixels of the picture: it contains `start` to `stop`.

    first, last  what it alone is the best for: these parts cover the picture once
    low, high    what of its mask is used: the same, or wider, where the more confident tile wins
    """

    start: int
    stop: int
    first: int
    last: int
    low: int
    high: int


class Tile(NamedTuple):
    """`number` counts row by row."""

    number: int
    row: int
    column: int
    rows: Span
    columns: Span


class Plan(NamedTuple):
    """The tiles of one picture.

    size   height and width of a tile; smaller ones are padded to it if the network has a fixed size
    halo   (before, after) of the rows, and of the columns
    exact  whether the mask is that of the whole picture
    note   why it is not
    joined whether neighbouring parts overlap, and the more confident tile wins
    fixed  whether every tile must have `size`
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    size: tuple[int, int]
    halo: tuple[tuple[int, int], tuple[int, int]]
    exact: bool
    note: str
    joined: bool
    fixed: bool

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def tiles(self, first_row: int = 0) -> Iterator[Tile]:
        """The tiles in order, without those that only matter for rows before `first_row`."""
        for row, rows in enumerate(self.rows):
            if rows.high > first_row:
                for column, columns in enumerate(self.columns):
                    yield Tile(row * len(self.columns) + column, row, column, rows, columns)


class _Axis(NamedTuple):
    """How one axis is cut: `before` and `after` are multiples of `stride`, and so is `tile` unless it is `fixed`."""

    name: str
    length: int
    before: int
    after: int
    stride: int
    tile: int
    exact: bool
    overlaps: bool

    @property
    def one(self) -> bool:
        return self.length <= self.tile


def plan(height: int, width: int, model: Model, tile: int = 0, halo: int | None = None) -> Plan:
    """The tiles of a picture for a model.

    tile  pixels a side, 0: chosen; rounded down to a multiple of the network's stride
    halo  pixels around the part of a tile that is used; None: the receptive field, or HALO without one

    Raises BadRequest.
    """
    if not 0 <= tile <= MOST_SIDE:
        raise BadRequest(f"tile is {tile}, want 1 to {MOST_SIDE} pixels, or 0 for the best size")
    if halo is not None and not 0 <= halo <= MOST_SIDE:
        raise BadRequest(f"halo is {halo}, want 0 to {MOST_SIDE} pixels")
    fixed = model.input.fit != "pad"
    field = model.receptive_field
    contexts = (None, None) if field is None or fixed else (field.height, field.width)
    least = (model.input.min_height, model.input.min_width)
    own = (model.input.height, model.input.width) if fixed else (0, 0)
    axes = [
        _fixed_axis(name, length, own[place], tile, halo)
        if fixed
        else _free_axis(name, length, contexts[place], model.input.multiple, least[place], tile, halo)
        for place, (name, length) in enumerate((("height", height), ("width", width)))
    ]
    exact = (height, width) == own if fixed else all(axis.exact or axis.one for axis in axes)
    joined = model.confidence and any(axis.overlaps and not axis.one for axis in axes)
    rows, columns = (tuple(spans(axis, joined)) for axis in axes)
    return Plan(
        rows,
        columns,
        (axes[0].tile, axes[1].tile),
        ((axes[0].before, axes[0].after), (axes[1].before, axes[1].after)),
        exact,
        "" if exact else _note(model, axes),
        joined,
        fixed,
    )


def spans(axis: "_Axis", joined: bool = False) -> list[Span]:
    """The tiles along an axis. All but the last have one size; the last one ends with the picture, and begins where
    alignment permits it to have nearly the same."""
    if axis.one:
        return [Span(0, axis.length, 0, axis.length, 0, axis.length)]
    beginning = -(-(axis.length - axis.tile) // axis.stride) * axis.stride  # of the last tile
    around = (axis.before, axis.after) if joined and axis.overlaps else (0, 0)
    found: list[Span] = []
    first = 0
    while first < axis.length:
        start = min(max(0, first - axis.before), beginning)
        stop = axis.length if start == beginning else start + axis.tile
        last = axis.length if start == beginning else stop - axis.after
        found.append(Span(start, stop, first, last, max(0, first - around[0]), min(axis.length, last + around[1])))
        first = last
    return found


def _free_axis(
    name: str, length: int, context: Context | None, multiple: int, least: int, tile: int, halo: int | None
) -> _Axis:
    stride = lcm(multiple, context.stride if context is not None else 1)
    needed = None if context is None else (_rounded(context.before, stride), _rounded(context.after, stride))
    before, after = (
        needed if needed is not None and halo is None else [_rounded(HALO if halo is None else halo, stride)] * 2
    )
    exact = needed is not None and before >= needed[0] and after >= needed[1]
    smallest = before + after + (stride if exact else max(stride, before + after))
    smallest = _rounded(max(smallest, least + stride - 1), stride)
    chosen = tile or max(min(LARGEST, max(SIDE, 3 * (before + after))) // stride * stride, smallest)
    if chosen < smallest and chosen < length:
        raise BadRequest(
            f"tile is {tile}, want at least {smallest} along the {name}: the halo has {before} and {after} pixels"
        )
    # A picture that fits is one tile, whatever its alignment.
    side = chosen if length <= chosen else chosen // stride * stride
    return _Axis(name, length, before, after, stride, side, exact, not exact)


def _fixed_axis(name: str, length: int, side: int, tile: int, halo: int | None) -> _Axis:
    if tile not in (0, side):
        raise BadRequest(f"tile is {tile}, want 0: the model accepts {side} pixels of {name}, no more and no fewer")
    around = min(HALO, side // 8) if halo is None else halo
    if 4 * around > side and side < length:
        raise BadRequest(f"halo is {around}, want at most {side // 4}, a quarter of the model's {name} of {side}")
    return _Axis(name, length, around, around, 1, side, False, True)


def _note(model: Model, axes: Sequence[_Axis]) -> str:
    name = repr(model.model)
    if model.input.fit != "pad":
        return f"{name} accepts one size only, so there is no mask of the whole picture to compare with"
    if model.receptive_field is None:
        return f"the file of {name} does not say how far around a pixel its mask depends on the picture"
    if None in (model.receptive_field.height, model.receptive_field.width):
        return f"the mask of {name} depends on the whole picture, as by global pooling"
    wanted = max(
        max(each.before, each.after) for each in (model.receptive_field.height, model.receptive_field.width) if each
    )
    return f"the halo is smaller than the receptive field of {name}, which needs {wanted} pixels or no --halo"


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
