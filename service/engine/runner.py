"""Runs one batch: gathers inputs from the slots, runs the session, scatters outputs to the slots."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service import declared
from convoy.service.dtypes import DTYPE_NAMES
from convoy.service.engine.session import DeviceLost, Session
from convoy.service.errors import ConvoyError, RunFailed
from convoy.service.ipc.channel import FAILED, Answer, Failure, Request, Times
from convoy.service.ipc.slots import SPILLED, Span, memory_file
from convoy.service.repository import TensorSpec

log = logging.getLogger(__name__)

_LARGE = 1 << 18  # bytes of outputs; copying fewer takes no longer than passing onnxruntime their destination


class _NotRows(Exception):
    """A run has shown that the network's first axis does not consist of rows that can be split among requests."""


# The end of a request, and the descriptors of outputs that travel in their own memory, which the sender must close.
Ended = tuple[Answer | Failure, tuple[int, ...]]


@dataclass(slots=True)
class Run:
    """A batch in a session: the outputs until `finish` has written them to the slots, then the end of each request."""

    requests: Sequence[Request]
    batches: list[tuple[int, Times]]  # the sizes that ran, and the times of each
    ended: list[Ended] = field(default_factory=list)  # of each request, in order
    outputs: Sequence[NDArray[np.generic]] = ()  # computed and not yet written
    slots: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)  # of outputs that the network may write itself
    batched: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs that are not yet written."""
        return sum([values.nbytes for values in self.outputs])


def run(session: Session, requests: Sequence[Request]) -> Run:
    """Runs a batch and writes its outputs to the slots. Raises the same as `compute`."""
    return finish(compute(session, requests))


def compute(session: Session, requests: Sequence[Request]) -> Run:
    """Runs a batch. If a batch of several requests fails, runs each to its end alone, so that a bad one fails alone.
    Otherwise, on a GPU, the outputs are the session's own memory, which its next run overwrites.

    Requests are marked in the front ends' memory while they run, so that a front end knows which ones ran when an
    engine died. One that may be the cause (`alone`) comes alone, and its rows run one by one.

    Raises DeviceLost: then no request may be answered, and the process must exit.
    """
    try:
        if len(requests) > 1 and session.apart:
            return _alone(session, requests)
        if requests[0].alone and requests[0].apart and requests[0].rows > 1:
            return _rows_alone(session, requests[0])
        return _compute(session, requests)
    except DeviceLost:
        raise
    except _NotRows as error:
        # From now on no run of this network is shared. The engine reports it; the requests of this batch run alone.
        session.run_apart(str(error))
        return compute(session, requests)
    except Exception as error:  # whatever the network or onnxruntime raised ends this batch only
        if len(requests) > 1:
            return _alone(session, requests)
        if requests[0].apart and requests[0].rows > 1:
            return _rows_alone(session, requests[0])
        log.warning("a run failed", exc_info=error)
        known = error if isinstance(error, ConvoyError) and not isinstance(error, RunFailed) else None
        return Run(requests, [], [_failed(requests[0], known or RunFailed(FAILED))])


def _alone(session: Session, requests: Sequence[Request]) -> Run:
    runs = [run(session, [request]) for request in requests]
    return Run(requests, [size for one in runs for size in one.batches], [end for one in runs for end in one.ended])


def _rows_alone(session: Session, request: Request) -> Run:
    """Runs each row of a shared slot alone, because one of them may have failed the common run, or ended an engine."""
    failed: list[int] = []
    good: list[Answer] = []
    batches: list[tuple[int, Times]] = []
    rows = [row for row in range(request.rows) if row not in request.skip]
    for row in rows:
        _mark([request], 1 + row)
        one = run(session, [_row_of(request, row)])
        ((record, descriptors),) = one.ended
        batches += one.batches
        if isinstance(record, Answer) and not descriptors:
            good.append(record)
        else:
            failed.append(row)
        for descriptor in descriptors:  # outputs that differ in size from their space in the slot
            os.close(descriptor)
    _mark([request], 0)
    if not good:
        return Run([request], batches, [_failed(request, RunFailed(FAILED))])
    times = Times(*good[0].times[:2], *good[-1].times[2:])
    outputs = tuple(
        room._replace(dtype=span.dtype, shape=(request.rows, *span.shape[1:]))
        for room, span in zip(request.outputs, good[0].outputs, strict=True)
    )
    return Run([request], batches, [(Answer(request.id, 1, times, outputs, tuple(failed), request.skip), ())])


def _row_of(request: Request, row: int) -> Request:
    """Returns one of several images in a slot as a request."""
    return msgspec.structs.replace(
        request,
        rows=1,
        mark=-1,  # the whole slot is marked
        inputs=tuple(_part(span, row, request.rows, (1, *span.shape[1:])) for span in request.inputs),
        outputs=tuple(_part(span, row, request.rows, span.shape) for span in request.outputs),
    )


def _part(span: Span, row: int, rows: int, shape: tuple[int, ...]) -> Span:
    nbytes = span.nbytes // rows
    return span._replace(offset=span.offset + row * nbytes, nbytes=nbytes, shape=shape)


def finish(run: Run) -> Run:
    """Writes the outputs to the slots unless already done. A request whose outputs cannot be written fails alone."""
    if run.ended:
        return run
    row = 0
    written: list[tuple[tuple[Span, ...], tuple[int, ...]] | None] = []
    for request in run.requests:
        parts = [values[row : row + request.rows] for values in run.outputs] if run.batched else run.outputs
        written.append(_written(request, parts, run.slots))
        row += request.rows
    ((rows, times),) = run.batches
    times = times._replace(done=time.monotonic())
    run.batches = [(rows, times)]
    run.ended = [
        _failed(request, RunFailed("the answer could not be passed on"))
        if into is None
        else (Answer(request.id, rows, times, into[0]), into[1])
        for request, into in zip(run.requests, written, strict=True)
    ]
    run.outputs, run.slots = (), {}
    return run


def _written(
    request: Request, outputs: Sequence[NDArray[np.generic]], slots: Mapping[int, NDArray[np.uint8]]
) -> tuple[tuple[Span, ...], tuple[int, ...]] | None:
    spilled: list[int] = []
    try:
        return _scatter(request, outputs, slots, spilled)
    except Exception as error:  # such as no free descriptor for a spilled output
        log.error("outputs could not be written", exc_info=error)
        for descriptor in spilled:
            os.close(descriptor)
        return None


def _failed(request: Request, error: ConvoyError) -> Ended:
    return Failure(request.id, error), ()


def _compute(session: Session, requests: Sequence[Request]) -> Run:
    gather = time.monotonic()
    rows = sum([request.rows for request in requests])
    size = _padded(session, requests[0], rows) if session.padding else rows
    arrays = [_gather(session, requests, number, size - rows) for number in range(len(session.inputs))]
    slots = _slots(requests) if size == rows else {}
    rooms = session.rooms(arrays, slots)
    start = time.monotonic()
    _mark(requests, 1)
    try:
        outputs = _outputs(session, arrays, rooms)
    except DeviceLost:
        raise  # the process ends because of this run: the marks stay
    except Exception:
        _mark(requests, 0)
        raise
    _mark(requests, 0)
    scatter = time.monotonic()
    if session.batched and (reason := _misshapen(session, outputs, arrays[0], size)):
        raise RunFailed(reason) if session.document is not None else _NotRows(reason)
    times = Times(gather, start, scatter, scatter)  # `finish` adds the end
    return Run(requests, [(rows, times)], outputs=outputs, slots=slots, batched=session.batched)


def _mark(requests: Sequence[Request], value: int) -> None:
    """Marks that requests run, or no longer run (0): see `slots.mark_of`."""
    for request in requests:
        if request.mark >= 0:
            request.memory.marks[request.mark] = value


def _misshapen(session: Session, outputs: Sequence[NDArray[np.generic]], first: NDArray[np.generic], size: int) -> str:
    """Returns which output does not have the rows of the batch, or the sides that are declared; "" if all have.

    first  the first input
    size   rows of the batch
    """
    for spec, values in zip(session.outputs, outputs, strict=True):
        rows = values.shape[0] if values.shape else 0
        if rows != size or not _as_declared(session, spec, values, first):
            return f"output {spec.name[:64]!r} has shape {list(values.shape)} for {size} rows"
    return ""


def _as_declared(session: Session, spec: TensorSpec, values: NDArray[np.generic], first: NDArray[np.generic]) -> bool:
    """Whether an output has the sides and the dtype that the file's metadata, or else the file, declare for it."""
    if session.document is None:
        return values.ndim == len(spec.shape) and all(
            side in (None, got) for side, got in zip(spec.shape, values.shape, strict=True)
        )
    wanted = declared.shapes(session.document, {spec.name}, first.shape[1:]).get(spec.name)
    return wanted is None or wanted == (DTYPE_NAMES.get(values.dtype), values.shape[1:])


def _padded(session: Session, request: Request, rows: int) -> int:
    key = tuple((span.shape[1:], span.dtype) for span in request.inputs)
    return session.padding.get(key, {}).get(rows, rows)


def _gather(session: Session, requests: Sequence[Request], number: int, padding: int) -> NDArray[np.generic]:
    views: list[NDArray[np.generic]] = [request.memory.array(request.inputs[number]) for request in requests]
    if len(views) == 1 and not padding:
        return views[0]  # a batch of one request needs no copy: its slot is contiguous
    rows = sum([len(view) for view in views])
    batch = session.input_buffers[number].array((rows + padding, *views[0].shape[1:]), views[0].dtype)
    batch[rows:] = 0  # clears the values of an earlier batch
    np.concatenate(views, out=batch[:rows])
    return batch


def _slots(requests: Sequence[Request]) -> dict[int, NDArray[np.uint8]]:
    """Returns where the network may write its outputs itself: only for a batch of one request, which fills its slot."""
    rooms = requests[0].outputs
    if len(requests) > 1 or sum([room.nbytes for room in rooms]) < _LARGE:
        return {}
    return {room.number: requests[0].memory.bytes_at(room.offset, room.nbytes) for room in rooms}


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
        # The output buffers were the cause: the file does not keep to its declared shapes, or the run ignores them.
        session.sure = False
        return outputs


def _scatter(
    request: Request,
    outputs: Sequence[NDArray[np.generic]],
    slots: Mapping[int, NDArray[np.uint8]],
    spilled: list[int],
) -> tuple[tuple[Span, ...], tuple[int, ...]]:
    """Writes the outputs of a request. Adds the descriptors of those that travel in their own memory to `spilled`."""
    spans = []
    for room in request.outputs:
        values = outputs[room.number]
        offset = room.offset
        if values.nbytes == room.nbytes:
            if room.number not in slots or not np.may_share_memory(values, slots[room.number]):
                request.memory.bytes_at(offset, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        else:
            # The size was not known when the slot was claimed: the output travels in its own memory file.
            offset = SPILLED
            spilled.append(memory_file(max(1, values.nbytes)))
            data = memoryview(values.reshape(-1).view(np.uint8).data)
            while data:
                data = data[os.write(spilled[-1], data) :]
        spans.append(Span(room.number, offset, values.nbytes, DTYPE_NAMES[values.dtype], values.shape))
    return tuple(spans), tuple(spilled)
