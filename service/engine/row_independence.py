"""Test of whether requests may share a run: whether each row of an answer depends on its own row alone.

A common name of all first dimensions does not prove that: it may be time, or the detections of one image.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from convoy.service.dtypes import DTYPES
from convoy.service.engine.instances import Instances
from convoy.service.engine.session import DeviceLost
from convoy.service.repository import TensorSpec

_SEED = 1
_SIDES = ((8, 12), (32, 64), (64, 96), (224, 256), (3, 5), (1, 2))  # of free axes: two sizes per attempt
_ROWS = ((1, 1, 2), (2, 1, 3))  # of the three requests of a trial
_ORDERS = ((0, 1), (1, 0), (0, 2, 1), (2, 1, 0))
# float32 answers of one row differ between batch sizes by a few units in the last place, summed up over layers; the
# differences between dependent rows are far larger.
_ROUNDING = {2: 2e-2, 4: 1e-3, 8: 1e-6}  # by itemsize, relative to the largest absolute value
_NEAR_TIES = 1e-3  # share of integer values: for nearly equal classes, rounding decides
_MANY = 1000  # values of a row: smaller rows may have no near-ties
LARGEST_ROW = 1 << 28  # bytes; larger inputs gain nothing from batching, and a few of them would fill the memory
_LONG = 5.0  # seconds of one run; longer ones gain nothing from batching, and a trial would delay the loading of others

Arrays = list[NDArray[np.generic]]


class Tried(Protocol):
    """The part of a session that a trial uses."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run_within(self, arrays: Sequence[NDArray[np.generic]], seconds: float) -> Arrays:
        """The outputs. Raises if the run takes longer, and any onnxruntime error."""


class _Kind(NamedTuple):
    """Random inputs: floats are `scale` times uniform numbers from `low` to 1, integers are below `most`."""

    low: float
    scale: float
    most: int


_KINDS = (_Kind(0, 1, 256), _Kind(-1, 1, 2), _Kind(-1, 8, 100), _Kind(0, 255, 8))


def trial(session: Tried, clock: Callable[[], float] = time.monotonic) -> str:
    """Why requests may not share a run; "" if random requests did, and each got the same answer as alone.

    Three requests, of one row or more, run alone, in pairs and all together, in both orders, at two sizes of the free
    axes. Every output must have as many rows as the input, each equal to its own within rounding. Raises DeviceLost.
    """
    if (size := row_bytes(session.inputs, 1)) > LARGEST_ROW:
        return f"a row of the input has {size} bytes: batching gains nothing"
    shown = 0
    for sides, rows in _sizes(session.inputs):
        tried = False
        for kind in _KINDS:
            try:
                reason = _one(session, sides, rows, kind, clock)
            except DeviceLost:
                raise
            except Exception:  # the network does not accept these sizes or values: try others
                continue
            if reason is None:
                tried = True  # it ran, but all answers were equal, which shows nothing
                continue
            if reason:
                return reason
            shown += 1
            break
        if shown == 2:
            return ""
        if not tried and not shown:
            continue
    if shown:
        return ""
    return "no random input showed that its rows are independent"


def row_bytes(inputs: Sequence[TensorSpec], side: int) -> int:
    """The bytes of one row of all inputs, where each free axis has `side` elements."""
    return sum(
        math.prod(side if length is None else length for length in spec.shape[1:]) * DTYPES[spec.dtype].itemsize
        for spec in inputs
    )


def _sizes(inputs: Sequence[TensorSpec]) -> Iterator[tuple[Mapping[int, int], tuple[int, ...]]]:
    """Sizes to try: the size of free axes (key 0), and the rows of each request."""
    free = any(side is None for spec in inputs for side in spec.shape[1:])
    for pair in _SIDES if free else ((0, 0),):
        for size, rows in zip(pair, _ROWS, strict=True):
            yield {0: size}, rows


def _one(
    session: Tried, sides: Mapping[int, int], rows: Sequence[int], kind: _Kind, clock: Callable[[], float]
) -> str | None:
    """The result of a trial at one size: "" independent, a text why not, None inconclusive."""
    generator = np.random.default_rng(_SEED)
    requests = [[_values(generator, spec, count, sides[0], kind) for spec in session.inputs] for count in rows]
    begin = clock()
    alone = [session.run_within(requests[0], _LONG)]
    if clock() - begin > _LONG / 2:
        begin = clock()  # the first run allocates, and something else may have used the machine
        session.run_within(requests[0], _LONG)
        if clock() - begin > _LONG / 2:
            return "a run takes so long that batching gains nothing"
    alone += [session.run_within(request, _LONG) for request in requests[1:]]
    for answer, count in zip(alone, rows, strict=True):
        for spec, values in zip(session.outputs, answer, strict=True):
            if not values.shape or values.shape[0] != count:
                return f"output {spec.name[:64]!r} has {_count(values)} for {count} of the input"
    if all(_same(one[:1], other[:1]) for one, other in zip(alone[0], alone[1], strict=True)):
        return None
    for order in _ORDERS:
        joined = [np.concatenate(parts) for parts in zip(*(requests[place] for place in order), strict=True)]
        try:
            together = session.run_within(joined, _LONG)
        except DeviceLost:
            raise
        except Exception:
            return "requests that run alone fail together"
        reason = _compare(session.outputs, together, [alone[place] for place in order])
        if reason:
            return reason
    return ""


def _compare(specs: Sequence[TensorSpec], together: Arrays, alone: Sequence[Arrays]) -> str:
    for number, (spec, values) in enumerate(zip(specs, together, strict=True)):
        own = np.concatenate([answer[number] for answer in alone]) if _fit(number, alone) else None
        if own is None or values.shape != own.shape:
            return f"output {spec.name[:64]!r} has another shape where requests share a run"
        if not _same(values, own):
            return f"rows of output {spec.name[:64]!r} depend on what else is in the batch"
    return ""


def _fit(number: int, alone: Sequence[Arrays]) -> bool:
    return len({answer[number].shape[1:] for answer in alone}) == 1


def _same(values: NDArray[np.generic], own: NDArray[np.generic]) -> bool:
    if values.shape != own.shape:
        return False
    if values.dtype.kind != "f":
        differ = np.count_nonzero(values != own)
        return bool(differ <= (_NEAR_TIES * own.size if own[:1].size > _MANY else 0))
    if not own.size:
        return True
    finite = np.abs(own[np.isfinite(own)], dtype=np.float64)
    most = _ROUNDING[own.dtype.itemsize] * float(finite.max(initial=0))
    return bool(np.allclose(values.astype(np.float64), own.astype(np.float64), rtol=0, atol=most, equal_nan=True))


def _values(generator: np.random.Generator, spec: TensorSpec, rows: int, free: int, kind: _Kind) -> NDArray[np.generic]:
    shape = (rows, *(free if side is None else side for side in spec.shape[1:]))
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return (kind.scale * generator.uniform(kind.low, 1, shape)).astype(dtype)
    most = 2 if dtype.kind == "b" else min(kind.most, np.iinfo(dtype).max + 1)
    drawn: NDArray[np.generic] = generator.integers(0, most, shape).astype(dtype)
    return drawn


def _count(values: NDArray[np.generic]) -> str:
    return f"{values.shape[0]} rows" if values.shape else f"{math.prod(values.shape)} value without rows"


def settle(instances: Instances, batched: bool | None) -> None:
    """Decide whether requests share runs: by `batched` in model.toml, else by the file's metadata, else by a trial."""
    session = instances.session
    if batched is False:
        reason = "model.toml or config.pbtxt says so"
    elif batched is True:
        for instance in instances.all:
            instance.session.join()
        return
    elif not session.batched or session.document is not None:  # the exporter has tested it in batches
        return
    else:
        reason = instances.all[0].submit(trial, session).result()
    if reason:
        for instance in instances.all:
            instance.session.run_apart(reason)
