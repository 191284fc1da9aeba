"""Runs one batch: gathers inputs from the slots, runs the session, scatters outputs to the slots. In a thread."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.channel import Answer, Failure, Submit, Times
from service.engine.session import DeviceLost, Session
from service.errors import ConvoyError, RunFailed
from service.slots import SPILLED, Span, memory_file
from service.slots import Mapping as Memory

log = logging.getLogger(__name__)

_LARGE = 1 << 18  # bytes of outputs: to copy fewer takes no longer than to tell onnxruntime where to put them


class Work(NamedTuple):
    """One request of a batch, and the memory of the front end that sent it."""

    submit: Submit
    memory: Memory


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
    rows = sum([work.submit.rows for work in works])
    size = _padded(session, works[0].submit, rows) if session.padding else rows
    arrays = [_gather(session, works, number, size - rows) for number in range(len(session.inputs))]
    slots = _slots(works) if size == rows else {}
    rooms = session.rooms(arrays, slots)
    start = time.monotonic_ns()
    outputs = _outputs(session, arrays, rooms)
    scatter = time.monotonic_ns()
    if session.batched:
        for spec, values in zip(session.outputs, outputs, strict=True):
            if not values.shape or values.shape[0] != size:
                raise RunFailed(f"output {spec.name!r} came with {values.shape[:1]} rows for {size}")
    ends = []
    row = 0
    with ExitStack() as undo:
        for work in works:
            part = slice(row, row + work.submit.rows)
            parts = [values[part] for values in outputs] if session.batched else outputs
            ends.append(_scatter(work, parts, slots, undo))
            row += work.submit.rows
        undo.pop_all()  # what was spilled now belongs to whoever sends the answers
    times = Times(gather, start, scatter, time.monotonic_ns())
    answers = [
        Done(Answer(work.submit.id, rows, times, spans), descriptors)
        for work, (spans, descriptors) in zip(works, ends, strict=True)
    ]
    return Ran(answers, [(rows, times)])


def _padded(session: Session, submit: Submit, rows: int) -> int:
    key = tuple((span.shape[1:], span.dtype) for span in submit.inputs)
    return session.padding.get(key, {}).get(rows, rows)


def _gather(session: Session, works: Sequence[Work], number: int, padding: int) -> NDArray[np.generic]:
    views = [work.memory.array(work.submit.inputs[number]) for work in works]
    if len(views) == 1 and not padding:
        return views[0]  # a batch of one request needs no copy: its slot is contiguous
    rows = sum([len(view) for view in views])
    batch = session.input_buffers[number].array((rows + padding, *views[0].shape[1:]), views[0].dtype)
    batch[rows:] = 0  # not what an earlier batch has left there
    np.concatenate(views, out=batch[:rows])
    return batch


def _slots(works: Sequence[Work]) -> dict[int, NDArray[np.uint8]]:
    """Where the network may write its outputs itself: a batch of one request fills its slot alone."""
    rooms = works[0].submit.outputs
    if len(works) > 1 or sum([room.nbytes for room in rooms]) < _LARGE:
        return {}
    return {room.number: works[0].memory.bytes_at(room.offset, room.nbytes) for room in rooms}


def _outputs(
    session: Session, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None]
) -> list[NDArray[np.generic]]:
    try:
        return session.run(arrays, rooms)
    except DeviceLost:
        raise
    except Exception:
        if not any(room is not None for room in rooms):
            raise
        outputs = session.run(arrays)
        session.sure = False  # it was the rooms: the file does not hold to the shapes that it tells
        return outputs


def _scatter(
    work: Work, outputs: Sequence[NDArray[np.generic]], slots: Mapping[int, NDArray[np.uint8]], undo: ExitStack
) -> tuple[tuple[Span, ...], tuple[int, ...]]:
    spans = []
    descriptors = []
    for room in work.submit.outputs:
        values = outputs[room.number]
        offset = room.offset
        if values.nbytes == room.nbytes:
            if room.number not in slots or not np.may_share_memory(values, slots[room.number]):
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
