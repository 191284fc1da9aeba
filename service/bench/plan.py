"""What a load test does: everything that a client process has to know, as plain values that travel as JSON."""

import math
from collections.abc import Sequence

import msgspec

from convoy.service.bench.arrivals import Piece, Spacing

_INTERVALS = 60  # at most about so many, whatever the length: as many points as a picture can show


class Closed(msgspec.Struct, frozen=True, tag="closed", tag_field="loop"):
    """`callers` callers, each of whom sends the next request when the last one is answered."""

    callers: int
    seconds: float

    def pieces(self) -> tuple[Piece, ...]:
        """One, of no rate: it follows from the answers."""
        return (Piece(self.seconds, 0.0, 0.0),)


class Open(msgspec.Struct, frozen=True, tag="open", tag_field="loop"):
    """Requests that come when they come, whatever has been answered. `variation` is for `gamma` only."""

    rates: tuple[Piece, ...]
    spacing: Spacing
    variation: float

    @property
    def seconds(self) -> float:
        """Of all pieces."""
        return math.fsum(piece.seconds for piece in self.rates)

    def pieces(self) -> tuple[Piece, ...]:
        """The rates."""
        return self.rates


class ImageModel(msgspec.Struct, frozen=True, kw_only=True, tag="images", tag_field="takes"):
    """A model of `convoy.v1.Vision`. `height` and `width` are of its generated images, 0 where it takes any size."""

    model: str
    version: str
    weight: float
    task: str  # classification or segmentation
    height: int
    width: int
    colour: str  # L or RGB


class InputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a model and the shapes that are sent, in turn. `rows` tells whether the first side counts images."""

    name: str
    datatype: str  # as the protocol names it: FP32, UINT8, ...
    shapes: tuple[tuple[int, ...], ...]
    rows: bool


class TensorModel(msgspec.Struct, frozen=True, kw_only=True, tag="tensors", tag_field="takes"):
    """A model of the Open Inference Protocol."""

    model: str
    version: str
    weight: float
    inputs: tuple[InputTensor, ...]


AskedModel = ImageModel | TensorModel


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One load test. The same plan gives the same requests at the same times, however many processes send them."""

    server: str
    models: tuple[AskedModel, ...]
    load: Closed | Open
    warm_up: float  # seconds before those that are measured
    batch: int  # images a request
    deadline: float  # seconds that an answer may take
    seed: int
    processes: int
    folder: str | None  # whose images are sent; None: generated ones
    stream: bool = False  # over one stream of each process for each model, not a call for each request
    sizes: tuple[tuple[int, int], ...]  # (height, width) of generated images, in turn; empty: as the model takes them


class Share(msgspec.Struct, frozen=True):
    """What one client process does: every `plan.processes`-th request, from number `share` on."""

    plan: Plan
    share: int


def edges(pieces: Sequence[Piece]) -> tuple[float, ...]:
    """Where the measured seconds are cut into intervals, from 0 to their end; where a piece ends an interval ends."""
    length = _round_length(sum(piece.seconds for piece in pieces) / _INTERVALS)
    found = [0.0]
    for piece in pieces:
        count = max(1, round(piece.seconds / length))
        found += [found[-1] + piece.seconds * place / count for place in range(1, count + 1)]
    return tuple(found)


def _round_length(seconds: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(seconds))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= seconds * (1 - 1e-9))
