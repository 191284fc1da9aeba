"""The plan of a load test: all that a client process needs, as plain values sent as JSON."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from convoy.service.client.credentials import PLAIN, Credentials

Spacing = Literal["poisson", "gamma", "constant"]

_INTERVALS = 60  # intervals at most, approximately, whatever the length: as many points as a picture can show


class Piece(msgspec.Struct, frozen=True):
    """A period of `seconds` in which the rate changes linearly from `begin` to `end`, both in requests a second."""

    seconds: float
    begin: float
    end: float

    @property
    def requests(self) -> float:
        """The expected number of requests."""
        return self.seconds * (self.begin + self.end) / 2


class Closed(msgspec.Struct, frozen=True, tag="closed", tag_field="loop"):
    """A closed loop of `callers` callers, each of which sends its next request when its previous one is answered."""

    callers: int
    seconds: float

    def pieces(self) -> tuple[Piece, ...]:
        """One piece without a rate: it depends on the answers."""
        return (Piece(self.seconds, 0.0, 0.0),)


class Open(msgspec.Struct, frozen=True, tag="open", tag_field="loop"):
    """An open loop: requests are sent when due, whatever has been answered. `variation` is for `gamma` only."""

    rates: tuple[Piece, ...]
    spacing: Spacing
    variation: float

    @property
    def seconds(self) -> float:
        """The total over all pieces."""
        return math.fsum(piece.seconds for piece in self.rates)

    def pieces(self) -> tuple[Piece, ...]:
        return self.rates


class ImageModel(msgspec.Struct, frozen=True, kw_only=True, tag="images", tag_field="takes"):
    """A model of `convoy.v1.Vision`. `height` and `width` are those of its generated images."""

    model: str
    version: str
    weight: float
    task: str  # classification or segmentation
    height: int
    width: int
    colour: str  # L or RGB


class InputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a model and the shapes to send, in turn. `rows`: whether the first dimension counts images."""

    name: str
    datatype: str  # the protocol's name: FP32, UINT8, ...
    shapes: tuple[tuple[int, ...], ...]
    rows: bool


class TensorModel(msgspec.Struct, frozen=True, kw_only=True, tag="tensors", tag_field="takes"):
    """A model of the Open Inference Protocol."""

    model: str
    version: str
    weight: float
    inputs: tuple[InputTensor, ...]


TargetModel = ImageModel | TensorModel


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One load test. The same plan gives the same requests at the same times, for any number of processes."""

    server: str
    credentials: Credentials = PLAIN
    models: tuple[TargetModel, ...]
    load: Closed | Open
    warm_up: float  # seconds before the measurement
    batch: int  # images per request
    deadline: float  # seconds in which a request must be answered
    seed: int
    processes: int
    folder: str | None  # whose images are sent; None: generated ones
    stream: bool = False  # over one stream per process and model, instead of a call per request
    raw_client: bool = False  # instead of grpcio's
    sizes: tuple[tuple[int, int], ...]  # (height, width) of generated images, in turn; empty: the models' own


class Share(msgspec.Struct, frozen=True):
    """The work of one client process: every `plan.processes`-th request, starting at number `share`."""

    plan: Plan
    share: int


def edges(pieces: Sequence[Piece]) -> tuple[float, ...]:
    """The edges of the intervals of the measured seconds, from 0 to the end; every piece ends at an edge."""
    length = _round_length(sum(piece.seconds for piece in pieces) / _INTERVALS)
    result = [0.0]
    for piece in pieces:
        count = max(1, round(piece.seconds / length))
        result += [result[-1] + piece.seconds * step / count for step in range(1, count + 1)]
    return tuple(result)


def _round_length(seconds: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(seconds))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= seconds * (1 - 1e-9))


def describe(load: Closed | Open) -> str:
    """A load as text."""
    if isinstance(load, Closed):
        return f"{load.callers} caller{'s' * (load.callers > 1)}"
    rates = ", ".join(
        f"{piece.begin:g}" if piece.begin == piece.end else f"{piece.begin:g} to {piece.end:g}" for piece in load.rates
    )
    spacing = f"gamma {load.variation:g}" if load.spacing == "gamma" else load.spacing
    return f"{rates} requests a second, {spacing}"
