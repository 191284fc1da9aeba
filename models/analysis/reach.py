"""Receptive field arithmetic along one axis: the positions of one map that each position of another depends on.

After Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill 2019), with intervals
instead of sizes and centres, so that branches and upsampling need no approximation.
"""

from fractions import Fraction
from itertools import chain
from math import ceil, floor, gcd, lcm
from typing import NamedTuple


class Reach(NamedTuple):
    """Position n depends on `first[r] + q * jump` to `last[r] + q * jump`, where q, r = divmod(n, len(first)).

    Positions count from 0; negative ones, and those past the end, are padding. A window has one entry; upsampling has a
    period of several positions with different fields. With `jump` 0 all positions have the same field. `centred` is
    whether all branches on the path have the same centre.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    jump: int
    centred: bool = True

    @property
    def size(self) -> int:
        """The size of the receptive field, from first to last position; the maximum over all positions."""
        return max(last - first for first, last in zip(self.first, self.last, strict=True)) + 1

    @property
    def stride(self) -> Fraction:
        """The distance between the fields of adjacent positions; a fraction after upsampling."""
        return Fraction(self.jump, len(self.first))

    @property
    def offset(self) -> Fraction:
        """The centre of position 0's field; after upsampling that of the mean position, shifted back to position 0."""
        period = len(self.first)
        return Fraction(sum(self.first) + sum(self.last), 2 * period) - self.stride * Fraction(period - 1, 2)

    def at(self, place: int) -> tuple[int, int]:
        """Returns the first and last positions that `place` depends on."""
        turn, rest = divmod(place, len(self.first))
        return self.first[rest] + turn * self.jump, self.last[rest] + turn * self.jump

    def compose(self, nearer: "Reach") -> "Reach":
        """Composes two reaches: `nearer` maps onto the near side of this one; the result spans both."""
        turns = len(self.first) // gcd(len(self.first), nearer.jump)
        period = len(nearer.first) * turns
        spans = [nearer.at(place) for place in range(period)]
        return Reach(
            first=tuple(self.at(first)[0] for first, _ in spans),
            last=tuple(self.at(last)[1] for _, last in spans),
            jump=self.jump * nearer.jump * turns // len(self.first),
            centred=self.centred and nearer.centred,
        )


ITSELF = Reach((0,), (0,), 1)


def window(kernel: int, stride: int = 1, before: int = 0, dilation: int = 1) -> Reach:
    """Returns the reach of a convolution or pooling, with `before` padding at the start; a negative `before` crops."""
    return Reach((-before,), (dilation * (kernel - 1) - before,), stride)


def spread(kernel: int, stride: int, before: int = 0, dilation: int = 1) -> Reach:
    """Returns the reach of a transposed convolution: each input position spreads over `kernel` outputs, minus `before`
    cropped at the start."""
    sources = []
    for place in range(stride):
        laid = [place + before - dilation * tap for tap in range(kernel)]
        # A position between kernels has no inputs; it counts as depending on its neighbour.
        sources.append([start // stride for start in laid if start % stride == 0] or [(place + before) // stride])
    return Reach(tuple(map(min, sources)), tuple(map(max, sources)), 1)


def resized(side: int, new_side: int, taps: int, corners: bool = False) -> Reach:
    """Returns the reach of interpolation between `taps` neighbours: 1 is nearest, 2 linear, 4 cubic.

    `corners` aligns the centres of the outermost positions; otherwise the outer edges are aligned.
    """
    if side == 1 or new_side == 1:
        return whole(side)
    far, near = (side - 1, new_side - 1) if corners else (side, new_side)
    period, jump = near // gcd(far, near), far // gcd(far, near)
    # The positions on both sides of each new position's centre.
    shift = Fraction(0) if corners or taps == 1 else Fraction(1, 2)
    centres = [(place + shift) * Fraction(far, near) - shift for place in range(period)]
    more = (taps - 1) // 2
    last = ceil if taps > 1 else floor
    return Reach(tuple(floor(c) - more for c in centres), tuple(last(c) + more for c in centres), jump)


def bins(side: int, count: int) -> Reach:
    """Returns the reach of adaptive pooling: bin i spans floor(i side / count) to ceil((i + 1) side / count)."""
    if count == 1:
        return whole(side)
    period, jump = count // gcd(side, count), side // gcd(side, count)
    first = tuple(place * side // count for place in range(period))
    return Reach(first, tuple(-(-(place + 1) * side // count) - 1 for place in range(period)), jump)


def whole(side: int) -> Reach:
    """Returns a reach in which every position depends on the whole map."""
    return Reach((0,), (side - 1,), 0)


def union(branches: list[Reach], side: int) -> Reach:
    """Returns the field of several branches that merge in a map of `side` positions.

    If branches have different strides, which no regular network has, the widest one represents all.
    """
    if len(branches) == 1:
        return branches[0]
    if any(branch.jump == 0 for branch in branches):
        ends = [(branch.at(0)[0], branch.at(side - 1)[1]) for branch in branches]
        return Reach((min(first for first, _ in ends),), (max(last for _, last in ends),), 0)
    widest = max(branches, key=lambda branch: branch.size)
    if len({branch.stride for branch in branches}) > 1:
        return widest._replace(centred=False)
    places = range(lcm(*(len(branch.first) for branch in branches)))
    positions = [list(chain.from_iterable(branch.at(place) for branch in branches)) for place in places]
    return Reach(
        first=tuple(map(min, positions)),
        last=tuple(map(max, positions)),
        jump=int(widest.stride * len(places)),
        centred=all(branch.centred for branch in branches) and len({branch.offset for branch in branches}) == 1,
    )
