"""An example in a model file: an input, described by how it is made, and what the network answered to it at export.

It shows that a file is whole, and that a device computes what it should. Without onnx, so that the server can use it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from convoy.service.errors import BadMetadata
from convoy.service.metadata import CONFIDENCE, LOCATION, MASK, Document

_MOST_OF_A_REASON = 300  # characters
KEY = "convoy.golden"  # in the file's `metadata_props`

_PLACES = 64  # of each output that are recorded
_PIXELS = ((0, 255), (96, 160), (0, 64), (192, 255))  # ranges that are tried for pixels
_VALUES = ((-1, 1), (-100, 100))  # the same for other inputs
_BLOCKS = (1, 8)  # sides of the equal patches of a picture: fine noise, and coarse
# Share of an output's largest value by which a value may differ: other devices compute in another order, and int8
# saturates on some and not on others.
_TOLERANCE = {"fp32": 0.1, "fp16": 0.15, "int8": 0.3}
_AGREEMENT = {"fp32": 0.95, "fp16": 0.9, "int8": 0.8}  # share of the places that must agree of a mask

Run = Callable[[NDArray[np.generic]], Mapping[str, NDArray[np.generic]]]  # input (1, ...) -> outputs by name


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some values of one output, by their flat index."""

    values: dict[int, float]
    tolerance: Annotated[float, Meta(ge=0)]
    agreement: Annotated[float, Meta(gt=0, le=1)]  # share of the values that must be within the tolerance


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The example. The input's bytes are those of SHAKE-128, spread from `low` to `high`, in patches of `block` pixels.

    `graph_bytes` is the length of the part of the file before its metadata, `graph_sha256` its digest; 0 bytes if the
    file has no such part.
    """

    seed: Annotated[int, Meta(ge=0)]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=65_535)], ...], Meta(min_length=1, max_length=7)]
    low: float
    high: float
    block: Annotated[int, Meta(ge=1, le=1024)]
    outputs: dict[str, Sample]
    graph_bytes: Annotated[int, Meta(ge=0)] = 0
    graph_sha256: str = ""


def decode(properties: Mapping[str, str]) -> Golden | None:
    """The example in an ONNX file's `metadata_props`, or None if the file has none. Raises BadMetadata."""
    text = properties.get(KEY)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Golden)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadMetadata(f"example {KEY!r}: {' '.join(str(error).split())[:_MOST_OF_A_REASON]}") from None


def encode(golden: Golden) -> str:
    """The JSON text for `metadata_props`."""
    return msgspec.json.encode(golden).decode()


def input_of(golden: Golden, dtype: str) -> NDArray[np.generic]:
    """The input of an example, (1, *shape)."""
    # Not numpy's generators: their numbers may change with its version.
    sides = list(golden.shape)
    coarse = [-(-side // golden.block) if place < len(sides) - 1 else side for place, side in enumerate(sides)]
    drawn = hashlib.shake_128(golden.seed.to_bytes(8, "little")).digest(int(np.prod(coarse)))
    values = np.frombuffer(drawn, np.uint8).reshape(coarse)
    for axis in range(len(sides) - 1):
        values = np.repeat(values, golden.block, axis=axis)
    values = values[tuple(slice(side) for side in sides)]
    spread = golden.low + values.astype(np.float64) * (golden.high - golden.low) / 255
    result: NDArray[np.generic] = (np.floor(spread) if dtype == "uint8" else spread).astype(dtype)[np.newaxis]
    return np.ascontiguousarray(result)


def difference(golden: Golden, outputs: Mapping[str, NDArray[np.generic]]) -> str:
    """How the outputs for the example's input, (1, ...) each, differ from those at export; "" if they do not."""
    for name, sample in golden.outputs.items():
        flat = outputs[name].reshape(-1) if name in outputs else np.empty(0)
        places = np.array(list(sample.values))
        if not len(places) or places.max() >= flat.size:
            return f"output {name[:64]!r} has {flat.size} values"
        wanted = np.array(list(sample.values.values()))
        got = flat[places].astype(np.float64)
        same = np.abs(got - wanted) <= sample.tolerance  # False for NaN
        if same.mean() < sample.agreement:
            first = int(np.flatnonzero(~same)[0])
            return f"value {places[first]} of {name[:64]!r} is {got[first]:.4g}, want {wanted[first]:.4g}"
    return ""


def measure(run: Run, document: Document, shape: tuple[int, ...], seed: int = 1) -> Golden:
    """Makes an example from what a network answers to an input of `shape`, without N: of several inputs, the one about
    which it is least sure. A saturated answer would hide most faults."""
    dtype = document.takes.dtype
    precision = "fp32" if document.variant is None else document.variant.precision
    best: tuple[float, Golden] | None = None
    for golden in _candidates(shape, seed, dtype):
        outputs = run(input_of(golden, dtype))
        # Places of maxima are left out: rounding decides between nearly equal ones.
        samples = {name: _sample(name, values, precision) for name, values in outputs.items() if name != LOCATION}
        unsure = _unsureness(outputs)
        if best is None or unsure > best[0]:
            best = unsure, msgspec.structs.replace(golden, outputs=samples)
    assert best is not None
    return best[1]


def _candidates(shape: tuple[int, ...], seed: int, dtype: str) -> Iterator[Golden]:
    for low, high in _PIXELS if dtype == "uint8" else _VALUES:
        for block in _BLOCKS:
            yield Golden(seed=seed, shape=shape, low=low, high=high, block=block, outputs={})


def _sample(name: str, values: NDArray[np.generic], precision: str) -> Sample:
    flat = values.reshape(-1).astype(np.float64)
    spread = np.linspace(0, flat.size - 1, min(_PLACES, flat.size)).round().astype(int)
    places = sorted({*spread.tolist(), int(flat.argmax())})
    return Sample(
        values={place: float(flat[place]) for place in places},
        tolerance=0.0 if name == MASK else _TOLERANCE[precision] * max(float(np.abs(flat[places]).max()), 1e-6),
        agreement=_AGREEMENT[precision] if name in (MASK, CONFIDENCE) else 1.0,
    )


def _unsureness(outputs: Mapping[str, NDArray[np.generic]]) -> float:
    """How far the outputs are from saturation: the entropy of the values of each, relative to its largest."""
    total = 0.0
    for values in outputs.values():
        shares = np.unique(values, return_counts=True)[1] if values.dtype.kind in "iu" else np.abs(values).reshape(-1)
        shares = shares.astype(np.float64)
        shares = shares[np.isfinite(shares) & (shares > 0)]
        shares = shares / shares.sum() if shares.size else shares
        total -= float((shares * np.log(shares)).sum())
    return total
