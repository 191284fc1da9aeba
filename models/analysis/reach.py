"""The arithmetic of receptive fields along one axis: which places of one map a place of another sees.

After Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill 2019), with intervals in
place of sizes and centres, so that branches and upsampling need no approximation.
"""

from fractions import Fraction
from itertools import chain
from math import ceil, floor, gcd, lcm
from typing import NamedTuple


class Reach(NamedTuple):
    """Place n sees the places `first[r] + q * jump` to `last[r] + q * jump`, where q, r = divmod(n, len(first)).

    Places count from 0; those below, and those beyond the end, are padding. A window has one entry; upsampling leaves a
    period of several places that see differently. With `jump` 0 every place sees the same. `centred` says whether all
    branches on the way have the same centre.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    jump: int
    centred: bool = True

    @property
    def size(self) -> int:
        """How many places are seen at once, from the first to the last; the most of any place."""
        return max(last - first for first, last in zip(self.first, self.last, strict=True)) + 1

    @property
    def stride(self) -> Fraction:
        """How much further the next place looks; a fraction behind upsampling."""
        return Fraction(self.jump, len(self.first))

    @property
    def offset(self) -> Fraction:
        """The centre of what place 0 sees; behind upsampling that of the mean place, moved back to place 0."""
        period = len(self.first)
        return Fraction(sum(self.first) + sum(self.last), 2 * period) - self.stride * Fraction(period - 1, 2)

    def at(self, place: int) -> tuple[int, int]:
        """The first and the last place that `place` sees."""
        turn, rest = divmod(place, len(self.first))
        return self.first[rest] + turn * self.jump, self.last[rest] + turn * self.jump

    def behind(self, nearer: "Reach") -> "Reach":
        """What is seen of the far side of this one by a map that sees this one's near side as `nearer` says."""
        turns = len(self.first) // gcd(len(self.first), nearer.jump)
        period = len(nearer.first) * turns
        seen = [nearer.at(place) for place in range(period)]
        return Reach(
            first=tuple(self.at(first)[0] for first, _ in seen),
            last=tuple(self.at(last)[1] for _, last in seen),
            jump=self.jump * nearer.jump * turns // len(self.first),
            centred=self.centred and nearer.centred,
        )


ITSELF = Reach((0,), (0,), 1)


def window(kernel: int, stride: int = 1, before: int = 0, dilation: int = 1) -> Reach:
    """Of a convolution or a pooling with `before` places of padding at the start; a negative `before` crops."""
    return Reach((-before,), (dilation * (kernel - 1) - before,), stride)


def spread(kernel: int, stride: int, before: int = 0, dilation: int = 1) -> Reach:
    """Of a transposed convolution: each place of the input is laid on `kernel` places, `before` of them cut off."""
    sources = []
    for place in range(stride):
        laid = [place + before - dilation * tap for tap in range(kernel)]
        # A place between the kernels sees nothing; it counts as seeing its neighbour.
        sources.append([start // stride for start in laid if start % stride == 0] or [(place + before) // stride])
    return Reach(tuple(map(min, sources)), tuple(map(max, sources)), 1)


def resized(side: int, new_side: int, taps: int, corners: bool = False) -> Reach:
    """Of interpolation between `taps` neighbours: 1 takes the nearest, 2 is linear, 4 cubic.

    `corners` lays the centres of the outermost places on each other; else those of pixels' corners meet.
    """
    if side == 1 or new_side == 1:
        return whole(side)
    far, near = (side - 1, new_side - 1) if corners else (side, new_side)
    period, jump = near // gcd(far, near), far // gcd(far, near)
    # The places between which the centre of a new place lies.
    shift = Fraction(0) if corners or taps == 1 else Fraction(1, 2)
    centres = [(place + shift) * Fraction(far, near) - shift for place in range(period)]
    more = (taps - 1) // 2
    last = ceil if taps > 1 else floor
    return Reach(tuple(floor(c) - more for c in centres), tuple(last(c) + more for c in centres), jump)


def bins(side: int, count: int) -> Reach:
    """Of adaptive pooling: bin i spans the places floor(i side / count) to ceil((i + 1) side / count)."""
    if count == 1:
        return whole(side)
    period, jump = count // gcd(side, count), side // gcd(side, count)
    first = tuple(place * side // count for place in range(period))
    return Reach(first, tuple(-(-(place + 1) * side // count) - 1 for place in range(period)), jump)


def whole(side: int) -> Reach:
    """Every place sees all places of a map."""
    return Reach((0,), (side - 1,), 0)


def union(branches: list[Reach], side: int) -> Reach:
    """What is seen through several branches that meet in a map of `side` places.

    Where branches advance at different strides, which no regular network has, the widest stands for all.
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
    seen = [list(chain.from_iterable(branch.at(place) for branch in branches)) for place in places]
    return Reach(
        first=tuple(map(min, seen)),
        last=tuple(map(max, seen)),
        jump=int(widest.stride * len(places)),
        centred=all(branch.centred for branch in branches) and len({branch.offset for branch in branches}) == 1,
    )
