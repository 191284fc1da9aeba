"""A front end's side of the engine: claims slots, hands them over, waits for their answers, outlives a dead engine."""

import asyncio
import itertools
import logging
import math
import mmap
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service import metrics
from service.channel import NEVER, Answer, Cancel, Failure, Hello, Packet, Record, Release, Submit, Wire
from service.channel import Table as TableRecord
from service.errors import EngineDied, ModelUnavailable
from service.repository import Table, Version, decode_table
from service.slots import ALIGNMENT, SPILLED, Arena, Span

log = logging.getLogger(__name__)

Result = tuple[Answer, dict[int, NDArray[Any]]]

_ATTEMPTS = 3  # submissions of one slot: an input that kills the engine must not kill it for ever
_REPLY = 0.001  # seconds that gRPC takes for a reply, which nobody here sees
_QUANTILE = 0.99
_STEP = 0.05
_HOLD = 30.0  # seconds that requests wait for an engine that does not come back


class WayBack:
    """How long answers take from the engine's last word to the reply, as 99 in 100 do not exceed it: what a deadline
    has to leave for that. Seconds; the usual stochastic step towards a quantile, rare large steps up, small ones down.
    """

    def __init__(self) -> None:
        self.bound = _REPLY

    def learn(self, seconds: float) -> None:
        """One answer took so long."""
        step = _QUANTILE if seconds + _REPLY > self.bound else _QUANTILE - 1
        self.bound = max(_REPLY, self.bound * (1 + _STEP * step))

    def leave(self, deadline: int, now: int) -> int:
        """When the engine has to be done, CLOCK_MONOTONIC in ns, for an answer by `deadline`: at the latest in half of
        the time that is left."""
        if deadline == NEVER:
            return NEVER
        return deadline - min(round(self.bound * 1e9), max(0, deadline - now) // 2)


class Slot:
    """The place of one request's tensors in shared memory. Use as a context manager: leaving it ends the slot once.

    `inputs` are views to be filled before `run`; the arrays that `run` gives are views too, valid until the slot ends.
    """

    def __init__(self, link: "EngineLink", block: tuple[int, int], inputs: tuple[Span, ...], outputs: tuple[Span, ...]):
        self._link = link
        self._block = block
        self._spans = (inputs, outputs)
        self._id = 0  # 0: never submitted
        self._done = 0  # when the engine was done with it, CLOCK_MONOTONIC in ns; 0: it has not answered

    @cached_property
    def inputs(self) -> list[NDArray[np.generic]]:
        """Views of the network's inputs, to be filled."""
        return [self._link.arena.mapping.array(span) for span in self._spans[0]]

    def bytes_of(self, number: int) -> memoryview:
        """The bytes of an input, to be filled."""
        return self._link.arena.mapping.view(self._spans[0][number])

    async def run(
        self,
        version: Version,
        *,
        rows: int,
        company: int,
        deadline: int,
        image: tuple[int, int] = (0, 0),
        low_priority: bool = False,
    ) -> Result:
        """Submit and wait: the answer, and the outputs by their number.

        rows       images side by side in the slot
        company    requests of this model under way in this front end, this one among them
        deadline   CLOCK_MONOTONIC, ns, or NEVER
        image      pixels of the input that each image fills, height and width
        Raises what the engine answered: QueueFull, DeadlinePassed, RunFailed, ModelUnavailable, UnknownModel.
        """
        self._id = self._link.next_id()
        now = time.monotonic_ns()
        by = self._link.way_back.leave(deadline, now)
        what = (self._id, version.model, version.version, rows, 0, company, now, by)
        submit = Submit(*what, *self._spans, image, low_priority)
        result = await self._link.submit(self, submit)
        self._done = result[0].times.done
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._done:
            self._link.way_back.learn((time.monotonic_ns() - self._done) / 1e9)
        if not self._link.abandon(self._id):
            self.free()

    def free(self) -> None:
        """Give the memory back. Only once nobody reads or writes it any more."""
        self._link.arena.free(self._block)
        self._link.changed()


class _Waiting:
    """A submitted slot whose last word from the engine has not come."""

    def __init__(self, slot: Slot, submit: Submit, answer: asyncio.Future[Result]) -> None:
        self.slot = slot
        self.submit = submit
        self.answer = answer
        self.attempts = 0  # submissions to an engine
        self.sent = False  # to the engine that is there now
        self.abandoned = False


class EngineLink:
    """The memory that this front end shares with the engine, and what waits for it.

    One writer: the front end's loop; only `claim` may be called from its threads.
    """

    def __init__(
        self,
        slot_bytes: int,
        on_table: Callable[[Table], None],
        on_loss: Callable[[], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.changed = changed  # how much of the memory is in use
        self.arena = Arena(slot_bytes)
        self._on_table = on_table
        self._on_loss = on_loss
        self._wire: Wire | None = None
        self._runnable: set[tuple[str, int]] = set()  # versions that the engine there is now has, retired ones too
        self._waiting: dict[int, _Waiting] = {}
        self._unsent: list[_Waiting] = []
        self._coming: Counter[str] = Counter()
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._hold: asyncio.TimerHandle | None = None
        self.way_back = WayBack()

    @property
    def connected(self) -> bool:
        """Whether there is an engine."""
        return self._wire is not None

    def attach(self, connection: socket.socket) -> None:
        """A new engine's channel. What waits is sent again as soon as that engine has loaded the version."""
        if self._wire is not None:
            self._wire.close()  # the end of the one before has not been read yet
        self._wire = Wire(connection, self._read, self._lost)
        self._wire.send([Hello(self.arena.nbytes)], [self.arena.descriptor])

    @contextmanager
    def coming(self, model: str) -> Iterator[None]:
        """A request of `model` is being prepared: batches of it may wait a little."""
        self._coming[model] += 1
        try:
            yield
        finally:
            self._coming[model] -= 1

    def claim(
        self, inputs: Iterable[tuple[np.dtype[np.generic], tuple[int, ...]]], output_bytes: Iterable[tuple[int, int]]
    ) -> Slot:
        """A slot for inputs of these (dtype, shape) and outputs of these (number, bytes). Raises QueueFull.

        An output whose size is not known has 0 bytes: it comes in memory of its own.
        """
        nbytes, given, wanted = _layout(tuple(inputs), tuple(output_bytes))
        block = self.arena.allocate(nbytes)
        return Slot(self, block, _placed(given, block[0]), _placed(wanted, block[0]))

    def next_id(self) -> int:
        """A number that no other submission of this front end has had."""
        return next(self._ids)

    def submit(self, slot: Slot, submit: Submit) -> asyncio.Future[Result]:
        """See Slot.run."""
        waiting = self._waiting[submit.id] = _Waiting(slot, submit, self._loop.create_future())
        self._queue(waiting)
        return waiting.answer

    def abandon(self, submit_id: int) -> bool:
        """The caller of a slot has gone. True where the engine may still use it: then its last word frees the slot."""
        waiting = self._waiting.get(submit_id)
        if waiting is None:
            return False
        if not waiting.sent:
            del self._waiting[submit_id]
            return False
        waiting.abandoned = True
        if self._wire is not None:
            self._wire.send([Cancel(submit_id)])
        return True

    def release(self, model: str, version: int) -> None:
        """Nothing of this front end refers to a version any more."""
        self._runnable.discard((model, version))
        if self._wire is not None:
            self._wire.send([Release(model, version)])

    def _queue(self, waiting: _Waiting) -> None:
        # What is submitted within one turn of the loop leaves in one packet.
        if self._wire is None or (waiting.submit.model, waiting.submit.version) not in self._runnable:
            self._hold_for_a_while()
            return
        if not self._unsent:
            self._loop.call_soon(self._send_unsent)
        self._unsent.append(waiting)

    def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        records: list[Record] = []
        for waiting in unsent:
            if self._wire is None or waiting.submit.id not in self._waiting:
                continue  # the engine has died, or the caller has gone, within this turn of the loop
            waiting.sent = True
            waiting.attempts += 1
            following = self._coming[waiting.submit.model]
            records.append(waiting.submit._replace(following=following) if following else waiting.submit)
        if self._wire is not None and records:
            self._wire.send(records)

    def _read(self, packet: Packet) -> None:
        descriptors = iter(packet.descriptors)
        for record in packet.records:
            match record:
                case Answer(outputs=spans):
                    outputs = {span.number: self._output(span, descriptors) for span in spans}
                    self._end(record.id, (record, outputs))
                case Failure(error=error):
                    self._end(record.id, error)
                case TableRecord(nbytes=nbytes):
                    descriptor = next(descriptors)
                    table = decode_table(os.pread(descriptor, nbytes, 0))
                    os.close(descriptor)
                    self._update(table)

    def _output(self, span: Span, descriptors: Iterator[int]) -> NDArray[np.generic]:
        if span.offset != SPILLED:
            return self.arena.mapping.array(span)
        descriptor = next(descriptors)
        memory = mmap.mmap(descriptor, max(1, span.nbytes), prot=mmap.PROT_READ)
        os.close(descriptor)
        return np.ndarray(span.shape, span.dtype, buffer=memory)

    def _end(self, submit_id: int, result: Result | Exception) -> None:
        waiting = self._waiting.pop(submit_id)
        if waiting.abandoned:
            waiting.slot.free()
        elif waiting.answer.done():
            pass  # cancelled within this turn of the loop: leaving the slot frees it
        elif isinstance(result, Exception):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)

    def _update(self, table: Table) -> None:
        self._runnable |= {(row.model, row.version) for row in table.versions if row.state == "READY"}
        self._on_table(table)
        if table.complete and self._hold is not None:
            self._hold.cancel()
            self._hold = None
        for waiting in list(self._waiting.values()):
            if waiting.sent or waiting in self._unsent:
                continue
            if (waiting.submit.model, waiting.submit.version) in self._runnable:
                if waiting.attempts:
                    metrics.RETRIES.labels(waiting.submit.model).inc()
                self._queue(waiting)
            elif table.complete:
                self._end(waiting.submit.id, ModelUnavailable(f"model {waiting.submit.model!r} is no longer served"))

    def _lost(self) -> None:
        """The engine has died: nobody writes into the slots any more, and what waits is sent to the next one."""
        self._wire = None
        self._runnable = set()
        self._unsent = []
        for waiting in list(self._waiting.values()):
            waiting.sent = False
            if waiting.abandoned:
                self._end(waiting.submit.id, EngineDied("the engine died"))
            elif waiting.attempts >= _ATTEMPTS:
                log.error("giving up on a request that was with the engine %d times when it died", waiting.attempts)
                self._end(waiting.submit.id, EngineDied(f"the engine died {waiting.attempts} times on this request"))
        self._hold_for_a_while()
        self._on_loss()

    def _hold_for_a_while(self) -> None:
        if self._hold is None:
            self._hold = self._loop.call_later(_HOLD, self._give_up)

    def _give_up(self) -> None:
        self._hold = None
        for waiting in list(self._waiting.values()):
            if not waiting.sent and not waiting.abandoned:
                self._end(waiting.submit.id, ModelUnavailable("the engine does not come back", retry_after=5.0))


@lru_cache(maxsize=1024)
def _layout(
    inputs: tuple[tuple[np.dtype[np.generic], tuple[int, ...]], ...], output_bytes: tuple[tuple[int, int], ...]
) -> tuple[int, tuple[Span, ...], tuple[Span, ...]]:
    """The bytes of a slot, and its inputs and outputs as if it began at 0."""
    at = 0
    given, wanted = [], []
    for number, (dtype, shape) in enumerate(inputs):
        nbytes = dtype.itemsize * math.prod(shape)
        given.append(Span(number, at, nbytes, dtype, shape))
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    for number, nbytes in output_bytes:
        wanted.append(Span(number, at, nbytes, np.dtype(np.uint8), (nbytes,)))
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return at, tuple(given), tuple(wanted)


def _placed(spans: tuple[Span, ...], begin: int) -> tuple[Span, ...]:
    return tuple([Span(number, begin + at, nbytes, dtype, shape) for number, at, nbytes, dtype, shape in spans])
