"""Runs one batch: gathers inputs from the slots, runs the session, scatters outputs to the slots. In a thread."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.channel import Answer, Failure, Submit, Times
from service.engine.session import DeviceLost, Session
from service.errors import ConvoyError, RunFailed
from service.slots import SPILLED, Mapping, Span, memory_file

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """One request of a batch, and the memory of the front end that sent it."""

    submit: Submit
    memory: Mapping


class Done(NamedTuple):
    """How one request of a batch ended. Whoever sends it on closes the descriptors of its spilled outputs."""

    record: Answer | Failure
    descriptors: tuple[int, ...] = ()


class Ran(NamedTuple):
    """What running a batch came to; `batches` are the sizes that ran and the times of each."""

    ends: list[Done]
    batches: list[tuple[int, Times]]


def run(session: Session, works: Sequence[Work]) -> Ran:
    """Run a batch. Where it fails and is of several requests, each runs alone, so that a bad one fails alone.

    Raises DeviceLost: then nothing may be answered, and the process has to end.
    """
    try:
        return _run(session, works)
    except DeviceLost:
        raise
    except Exception as error:  # a batch ends here, whatever the network or onnxruntime did
        if len(works) > 1:
            alone = [run(session, [work]) for work in works]
            return Ran([end for one in alone for end in one.ends], [size for one in alone for size in one.batches])
        log.warning("a run failed", exc_info=error)
        known = error if isinstance(error, ConvoyError) and not isinstance(error, RunFailed) else None
        failure = known or RunFailed("the network failed on this input")
        return Ran([Done(Failure(works[0].submit.id, failure))], [])


def _run(session: Session, works: Sequence[Work]) -> Ran:
    gather = time.monotonic_ns()
    arrays = [_gather(works, number) for number in range(len(session.inputs))]
    start = time.monotonic_ns()
    outputs = session.run(arrays)
    scatter = time.monotonic_ns()
    rows = sum(work.submit.rows for work in works)
    if session.batched:
        for spec, values in zip(session.outputs, outputs, strict=True):
            if not values.shape or values.shape[0] != rows:
                raise RunFailed(f"output {spec.name!r} came with {values.shape[:1]} rows for {rows}")
    ends = []
    row = 0
    with ExitStack() as undo:
        for work in works:
            part = slice(row, row + work.submit.rows)
            ends.append(_scatter(work, [values[part] if session.batched else values for values in outputs], undo))
            row += work.submit.rows
        undo.pop_all()  # what was spilled now belongs to whoever sends the answers
    times = Times(gather, start, scatter, time.monotonic_ns())
    answers = [
        Done(Answer(work.submit.id, rows, times, spans), descriptors)
        for work, (spans, descriptors) in zip(works, ends, strict=True)
    ]
    return Ran(answers, [(rows, times)])


def _gather(works: Sequence[Work], number: int) -> NDArray[np.generic]:
    views = [work.memory.array(work.submit.inputs[number]) for work in works]
    # A batch of one request needs no copy: its slot is contiguous.
    return views[0] if len(views) == 1 else np.concatenate(views)


def _scatter(
    work: Work, outputs: Sequence[NDArray[np.generic]], undo: ExitStack
) -> tuple[tuple[Span, ...], tuple[int, ...]]:
    spans = []
    descriptors = []
    for room in work.submit.outputs:
        values = outputs[room.number]
        offset = room.offset
        if values.nbytes == room.nbytes:
            work.memory.bytes_at(offset, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        else:
            # The size was not known when the slot was claimed: the output travels in a memory file of its own.
            offset = SPILLED
            descriptors.append(_spill(values, undo))
        spans.append(Span(room.number, offset, values.nbytes, values.dtype, values.shape))
    return tuple(spans), tuple(descriptors)


def _spill(values: NDArray[np.generic], undo: ExitStack) -> int:
    descriptor = memory_file(max(1, values.nbytes))
    undo.callback(os.close, descriptor)
    data = memoryview(values.reshape(-1).view(np.uint8).data)
    while data:
        data = data[os.write(descriptor, data) :]
    return descriptor
