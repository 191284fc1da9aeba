"""Runs one batch: gathers inputs from the slots, runs the session, scatters outputs to the slots."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service.engine.session import DeviceLost, Session
from convoy.service.errors import ConvoyError, RunFailed
from convoy.service.ipc.channel import FAILED, Answer, Failure, Submit, Times
from convoy.service.ipc.slots import SPILLED, SharedMemory, Span, memory_file
from convoy.service.repository import TensorSpec

log = logging.getLogger(__name__)

_LARGE = 1 << 18  # bytes of outputs; copying fewer takes no longer than passing onnxruntime their destination


class _NotRows(Exception):
    """A run has shown that the network's first axis does not consist of rows that can be split among requests."""


class Work(NamedTuple):
    """One request of a batch, and the memory of its front end."""

    submit: Submit
    memory: SharedMemory


class Done(NamedTuple):
    """The end of one request of a batch. The sender of the record must close the descriptors of its spilled outputs."""

    record: Answer | Failure
    descriptors: tuple[int, ...] = ()


class Ran(NamedTuple):
    """The outcome of a batch; `batches` contains the sizes that ran and the times of each."""

    ends: list[Done]
    batches: list[tuple[int, Times]]


class Computed(NamedTuple):
    """A batch whose outputs are computed but not yet in the slots. The last three fields are as in Times."""

    works: Sequence[Work]
    outputs: Sequence[NDArray[np.generic]]
    rows: int
    batched: bool
    slots: Mapping[int, NDArray[np.uint8]]  # memory of outputs that the network may write itself
    gather: int
    run: int
    scatter: int

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs."""
        return sum([values.nbytes for values in self.outputs])


def run(session: Session, works: Sequence[Work]) -> Ran:
    """Runs a batch and writes its outputs to the slots. Raises the same as `compute`."""
    return finish(compute(session, works))


def compute(session: Session, works: Sequence[Work]) -> Computed | Ran:
    """Runs a batch. If a batch of several requests fails, runs each to its end alone, so that a bad one fails alone.
    Otherwise, on a GPU, the outputs are the session's own memory, which its next run overwrites.

    Raises DeviceLost: then no request may be answered, and the process must exit.
    """
    try:
        if len(works) > 1 and session.apart:
            return _alone(session, works)
        return _compute(session, works)
    except DeviceLost:
        raise
    except _NotRows as error:
        # From now on no run of this network is shared. The engine reports it; the requests of this batch run alone.
        session.run_apart(str(error))
        return compute(session, works)
    except Exception as error:  # whatever the network or onnxruntime raised ends this batch only
        if len(works) > 1:
            return _alone(session, works)
        if works[0].submit.image[0] and works[0].submit.rows > 1:
            return _images_alone(session, works[0])
        log.warning("a run failed", exc_info=error)
        known = error if isinstance(error, ConvoyError) and not isinstance(error, RunFailed) else None
        return Ran([_failed(works[0], known or RunFailed(FAILED))], [])


def _alone(session: Session, works: Sequence[Work]) -> Ran:
    alone = [run(session, [work]) for work in works]
    return Ran([end for one in alone for end in one.ends], [size for one in alone for size in one.batches])


def _images_alone(session: Session, work: Work) -> Ran:
    """Runs each image of a shared slot alone, because one of them may have failed the common run."""
    rows, failed = work.submit.rows, []
    good: list[Answer] = []
    batches: list[tuple[int, Times]] = []
    for row in range(rows):
        ran = run(session, [Work(_row_of(work.submit, row), work.memory)])
        (done,) = ran.ends
        batches += ran.batches
        if isinstance(done.record, Answer) and not done.descriptors:
            good.append(done.record)
        else:
            failed.append(row)
        for descriptor in done.descriptors:  # outputs that differ in size from their space in the slot
            os.close(descriptor)
    if not good:
        return Ran([_failed(work, RunFailed(FAILED))], batches)
    times = Times(*good[0].times[:2], *good[-1].times[2:])
    outputs = tuple(
        room._replace(dtype=span.dtype, shape=(rows, *span.shape[1:]))
        for room, span in zip(work.submit.outputs, good[0].outputs, strict=True)
    )
    return Ran([Done(Answer(work.submit.id, 1, times, outputs, tuple(failed)))], batches)


def _row_of(submit: Submit, row: int) -> Submit:
    """Returns the submission of one of several images in a slot."""
    return submit._replace(
        rows=1,
        inputs=tuple(_part(span, row, submit.rows, (1, *span.shape[1:])) for span in submit.inputs),
        outputs=tuple(_part(span, row, submit.rows, span.shape) for span in submit.outputs),
    )


def _part(span: Span, row: int, rows: int, shape: tuple[int, ...]) -> Span:
    nbytes = span.nbytes // rows
    return span._replace(offset=span.offset + row * nbytes, nbytes=nbytes, shape=shape)


def finish(computed: Computed | Ran) -> Ran:
    """Writes the outputs to the slots unless already done. A request whose outputs cannot be written fails alone."""
    if isinstance(computed, Ran):
        return computed
    row = 0
    written: list[tuple[tuple[Span, ...], tuple[int, ...]] | None] = []
    for work in computed.works:
        part = slice(row, row + work.submit.rows)
        parts = [values[part] for values in computed.outputs] if computed.batched else computed.outputs
        written.append(_written(work, parts, computed.slots))
        row += work.submit.rows
    times = Times(computed.gather, computed.run, computed.scatter, time.monotonic_ns())
    ends = [
        _failed(work, RunFailed("the answer could not be passed on"))
        if into is None
        else Done(Answer(work.submit.id, computed.rows, times, into[0]), into[1])
        for work, into in zip(computed.works, written, strict=True)
    ]
    return Ran(ends, [(computed.rows, times)])


def _written(
    work: Work, outputs: Sequence[NDArray[np.generic]], slots: Mapping[int, NDArray[np.uint8]]
) -> tuple[tuple[Span, ...], tuple[int, ...]] | None:
    with ExitStack() as undo:
        try:
            written = _scatter(work, outputs, slots, undo)
        except Exception as error:  # such as no free descriptor for a spilled output
            log.error("outputs could not be written", exc_info=error)
            return None
        undo.pop_all()  # the sender of the answer now owns the spilled outputs
        return written


def _failed(work: Work, error: ConvoyError) -> Done:
    return Done(Failure(work.submit.id, error))


def _compute(session: Session, works: Sequence[Work]) -> Computed:
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
            if not values.shape or values.shape[0] != size or not _as_declared(session, spec, values):
                reason = f"output {spec.name[:64]!r} came as {list(values.shape)} for {size} rows"
                raise RunFailed(reason) if session.document is not None else _NotRows(reason)
    return Computed(works, outputs, rows, session.batched, slots, gather, start, scatter)


def _as_declared(session: Session, spec: TensorSpec, values: NDArray[np.generic]) -> bool:
    # With a document, the sides were checked when the file was loaded.
    return session.document is not None or (
        values.ndim == len(spec.shape)
        and all(side in (None, got) for side, got in zip(spec.shape, values.shape, strict=True))
    )


def _padded(session: Session, submit: Submit, rows: int) -> int:
    key = tuple((span.shape[1:], span.dtype) for span in submit.inputs)
    return session.padding.get(key, {}).get(rows, rows)


def _gather(session: Session, works: Sequence[Work], number: int, padding: int) -> NDArray[np.generic]:
    views = [work.memory.array(work.submit.inputs[number]) for work in works]
    if len(views) == 1 and not padding:
        return views[0]  # a batch of one request needs no copy: its slot is contiguous
    rows = sum([len(view) for view in views])
    batch = session.input_buffers[number].array((rows + padding, *views[0].shape[1:]), views[0].dtype)
    batch[rows:] = 0  # clears the values of an earlier batch
    np.concatenate(views, out=batch[:rows])
    return batch


def _slots(works: Sequence[Work]) -> dict[int, NDArray[np.uint8]]:
    """Returns where the network may write its outputs itself: only for a batch of one request, which fills its slot."""
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
        session.sure = False  # the output buffers were the cause: the file does not keep to its declared shapes
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
            # The size was not known when the slot was claimed: the output travels in its own memory file.
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
