"""A front end's connection to the engines: claims slots, submits them, awaits answers, survives an engine's death."""

import asyncio
import itertools
import logging
import mmap
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from convoy.service import metrics
from convoy.service.errors import EngineDied, ModelUnavailable
from convoy.service.frontend.admission import WayBack
from convoy.service.frontend.routing import Load, choose, merged
from convoy.service.ipc.channel import Answer, Cancel, Failure, Hello, Packet, Record, Release, Submit, TableFile, Wire
from convoy.service.ipc.slots import SPILLED, Arena, Span, layout
from convoy.service.repository import Table, Version, decode_table

log = logging.getLogger(__name__)

Result = tuple[Answer, dict[int, NDArray[Any]]]

_ATTEMPTS = 3  # submissions per slot: an input that kills the engine must not kill it without end
_HOLD = 30.0  # seconds for which requests wait for a dead engine's restart


class Lease:
    """A slot for one request's tensors in the memory shared with the engines: filled, run, read, and released once.

    Use it as a context manager, or call `release`. `inputs` are views to be filled before `run`. The arrays that `run`
    returns are views, too, valid until the release. One owner: the caller of `claim`.
    """

    def __init__(
        self, client: "EngineClient", block: tuple[int, int], inputs: tuple[Span, ...], outputs: tuple[Span, ...]
    ) -> None:
        self.block = block
        self.submit: Submit | None = None
        self.answer: asyncio.Future[Result] | None = None
        self.attempts = 0  # submissions to an engine
        self.engine: _Engine | None = None  # the one that it is queued for or sent to
        self.sent = False  # to that engine
        self.released = False
        self.done = 0  # when the engine finished it, CLOCK_MONOTONIC in ns; 0: no answer yet
        self._client = client
        self._spans = (inputs, outputs)

    @cached_property
    def inputs(self) -> list[NDArray[np.generic]]:
        """Views of the network's inputs, to be filled."""
        return [self._client.arena.mapping.array(span) for span in self._spans[0]]

    def bytes_of(self, number: int) -> memoryview:
        """Returns the bytes of an input, to be filled."""
        return self._client.arena.mapping.view(self._spans[0][number])

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs."""
        return sum([span.nbytes for span in self._spans[0]])

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
        """Submits the request and waits. Returns the answer, and the outputs by number.

        rows       images side by side in the slot
        company    requests of this model in flight in this front end, including this one
        deadline   CLOCK_MONOTONIC, ns, or NEVER
        image      (height, width) of each image in the input, pixels
        Raises the engine's error: QueueFull, DeadlinePassed, RunFailed, ModelUnavailable, UnknownModel.
        """
        now = time.monotonic_ns()
        self.submit = Submit(
            id=self._client.next_id(),
            model=version.model,
            version=version.version,
            rows=rows,
            following=0,  # set when it is sent
            company=company,
            arrived=now,
            deadline=self._client.way_back.leave(deadline, now),
            inputs=self._spans[0],
            outputs=self._spans[1],
            image=image,
            low_priority=low_priority,
        )
        answer, outputs = await self._client.send(self, self.submit)
        self.done = answer.times.done
        return answer, outputs

    def release(self) -> None:
        """Ends the owner's use. The memory is freed once no engine may access it either. A second call does nothing."""
        if self.released:
            return
        self.released = True
        if self.done:
            self._client.way_back.learn((time.monotonic_ns() - self.done) / 1e9)
        self._client.let_go(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Engine:
    """This front end's side of a device's engine. One writer: the front end's loop."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.wire: Wire | None = None
        self.runnable: set[tuple[str, int]] = set()  # versions of the current process, including retired ones
        self.unsent: list[tuple[Lease, Submit]] = []
        self.load = Load()  # maintained only with several engines
        self.complete = False  # the current process has scanned the whole repository
        self.lost = False  # a process died, and none has been complete since
        # Of the current process, or of the previous one while the current one loads. None: not restarted, others go on.
        self.table: Table | None = Table()

    def take(self, table: Table) -> None:
        """Accepts a new table of the current process."""
        self.runnable |= {(row.model, row.version) for row in table.versions if row.state == "READY"}
        self.complete = table.complete
        if table.complete or table.problem or (self.table is not None and not self.table.complete):
            self.table = table
        if table.complete:
            self.lost = False

    def die(self) -> None:
        self.wire = None
        self.runnable = set()
        self.unsent = []
        self.load.forget()
        self.complete = False
        self.lost = True


class EngineClient:
    """The memory that this front end shares with the engines, one per device, and the requests that wait for them.

    One writer: the front end's loop; only `claim` may be called from its threads.
    """

    def __init__(
        self,
        slot_bytes: int,
        on_table: Callable[[Table], None],
        on_loss: Callable[[], None],
        changed: Callable[[], None] = lambda: None,
        devices: Sequence[int] = (0,),
    ) -> None:
        self.changed = changed  # called when the use of the memory changes
        self.arena = Arena(slot_bytes)
        self._on_table = on_table
        self._on_loss = on_loss
        self._engines = {device: _Engine(device) for device in devices}
        self._only = self._engines[devices[0]] if len(devices) == 1 else None  # then no choice is needed
        self._turns = 0  # choices
        self._waiting: dict[int, Lease] = {}
        self._coming: Counter[str] = Counter()
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._hold: asyncio.TimerHandle | None = None
        self.way_back = WayBack()

    @property
    def connected(self) -> bool:
        """Whether any engine is connected."""
        return any(engine.wire is not None for engine in self._engines.values())

    @property
    def lost(self) -> list[int]:
        """Devices whose engine died, and where no new engine has loaded the whole repository yet."""
        return [engine.device for engine in self._engines.values() if engine.lost]

    def attach(self, connection: socket.socket, device: int = 0) -> None:
        """Connects a new engine. Waiting requests are sent again once this engine, or another, has their version."""
        engine = self._engines[device]
        if engine.wire is not None:
            engine.wire.close()  # the end of the previous channel has not been read yet
        engine.wire = Wire(connection, lambda packet: self._read(engine, packet), lambda: self._lost(engine))
        engine.wire.send([Hello(self.arena.nbytes)], [self.arena.descriptor])

    @contextmanager
    def coming(self, model: str) -> Iterator[None]:
        """Counts a request of `model` that is being prepared, so that batches may wait briefly for it."""
        self._coming[model] += 1
        try:
            yield
        finally:
            self._coming[model] -= 1

    def claim(
        self, inputs: Iterable[tuple[np.dtype[np.generic], tuple[int, ...]]], output_bytes: Iterable[tuple[int, int]]
    ) -> Lease:
        """Claims a slot for inputs of these (dtype, shape) and outputs of these (number, bytes). Raises QueueFull.

        An output of unknown size has 0 bytes: it arrives in its own memory.
        """
        plan = layout(tuple(inputs), tuple(output_bytes))
        block = self.arena.allocate(plan.nbytes)
        return Lease(self, block, *plan.at(block[0]))

    def next_id(self) -> int:
        """Returns a number that no earlier submission of this front end has used."""
        return next(self._ids)

    def send(self, lease: Lease, submit: Submit) -> asyncio.Future[Result]:
        """See Lease.run."""
        self._waiting[submit.id] = lease
        lease.answer = self._loop.create_future()
        self._queue(lease, submit)
        return lease.answer

    def let_go(self, lease: Lease) -> None:
        """See Lease.release, which calls it once."""
        submit = lease.submit
        if submit is not None and submit.id in self._waiting:
            if lease.sent:
                if lease.engine is not None and lease.engine.wire is not None:
                    lease.engine.wire.send([Cancel(submit.id)])
                return  # the engine may still use it: its Answer or Failure frees it
            del self._waiting[submit.id]
            self._take_from_load(lease, submit)
        self._free(lease)

    def _free(self, lease: Lease) -> None:
        """Frees a slot that no process reads or writes any more."""
        self.arena.free(lease.block)
        self.changed()

    def forget(self, model: str, version: int) -> None:
        """Reports to the engines that this front end no longer refers to a version."""
        for engine in self._engines.values():
            engine.runnable.discard((model, version))
            if engine.wire is not None:
                engine.wire.send([Release(model, version)])

    def _queue(self, lease: Lease, submit: Submit) -> bool:
        """Queues a slot for an engine that has the version. Returns False if there is none: the slot then waits."""
        engine = self._engine_for(submit, lease.nbytes)
        if engine is None:
            self._hold_for_a_while()
            return False
        lease.engine = engine
        # Everything submitted within one turn of the loop leaves in one packet.
        if not engine.unsent:
            self._loop.call_soon(self._send_unsent, engine)
        engine.unsent.append((lease, submit))
        return True

    def _engine_for(self, submit: Submit, nbytes: int) -> _Engine | None:
        served = submit.model, submit.version
        if self._only is not None:
            return self._only if served in self._only.runnable else None
        able = {engine.load: engine for engine in self._engines.values() if served in engine.runnable}
        if not able:
            return None
        self._turns += 1
        chosen = choose(list(able), served, nbytes, self._turns)
        chosen.add(served, nbytes)
        return able[chosen]

    def _take_from_load(self, lease: Lease, submit: Submit) -> None:
        if self._only is None and lease.engine is not None:
            lease.engine.load.end((submit.model, submit.version), lease.nbytes)

    def _send_unsent(self, engine: _Engine) -> None:
        unsent, engine.unsent = engine.unsent, []
        records: list[Record] = []
        for lease, submit in unsent:
            if engine.wire is None or submit.id not in self._waiting:
                continue  # the engine died, or the caller cancelled, within this turn of the loop
            lease.sent = True
            lease.attempts += 1
            following = self._coming[submit.model] // len(self._engines)  # this engine's share
            records.append(submit._replace(following=following) if following else submit)
        if engine.wire is not None and records:
            engine.wire.send(records)

    def _read(self, engine: _Engine, packet: Packet) -> None:
        descriptors = iter(packet.descriptors)
        for record in packet.records:
            match record:
                case Answer(outputs=spans):
                    if self._only is None:
                        self._learn(engine, record)
                    outputs = {span.number: self._output(span, descriptors) for span in spans}
                    self._end(record.id, (record, outputs))
                case Failure(error=error):
                    self._end(record.id, error)
                case TableFile(nbytes=nbytes):
                    descriptor = next(descriptors)
                    table = decode_table(os.pread(descriptor, nbytes, 0))
                    os.close(descriptor)
                    self._update(engine, table)

    def _learn(self, engine: _Engine, answer: Answer) -> None:
        lease, times = self._waiting[answer.id], answer.times
        assert lease.submit is not None
        nbytes = lease.nbytes * answer.batch_size // lease.submit.rows
        engine.load.learn((lease.submit.model, lease.submit.version), times.gather, times.done, nbytes)

    def _output(self, span: Span, descriptors: Iterator[int]) -> NDArray[np.generic]:
        if span.offset != SPILLED:
            return self.arena.mapping.array(span)
        descriptor = next(descriptors)
        memory = mmap.mmap(descriptor, max(1, span.nbytes), prot=mmap.PROT_READ)
        os.close(descriptor)
        return np.ndarray(span.shape, span.dtype, buffer=memory)

    def _end(self, submit_id: int, result: Result | Exception) -> None:
        """Ends a submission that the engine has finished, lost by dying, or will never receive."""
        lease = self._waiting.pop(submit_id)
        assert lease.submit is not None
        assert lease.answer is not None
        self._take_from_load(lease, lease.submit)
        lease.sent = False
        if lease.released:
            self._free(lease)
        elif lease.answer.done():
            pass  # cancelled within this turn of the loop: the release frees it
        elif isinstance(result, Exception):
            lease.answer.set_exception(result)
        else:
            lease.answer.set_result(result)

    def _update(self, engine: _Engine, table: Table) -> None:
        engine.take(table)
        self._tell_table()
        settled = self._settled()
        if settled and self._hold is not None:
            self._hold.cancel()
            self._hold = None
        elif self.lost:
            self._hold_for_a_while()
        for lease, submit in self._unplaced():
            if not self._queue_again(lease, submit) and settled:
                self._end(submit.id, ModelUnavailable(f"model {submit.model!r} is no longer served"))

    def _unplaced(self) -> list[tuple[Lease, Submit]]:
        """Returns the submissions that wait for an engine with their version."""
        return [(each, each.submit) for each in self._waiting.values() if each.engine is None and each.submit]

    def _tell_table(self) -> None:
        self._on_table(merged({each.device: each.table for each in self._engines.values() if each.table is not None}))

    def _settled(self) -> bool:
        """Returns whether no engine is still loading, so that no further version is expected."""
        return all(engine.complete for engine in self._engines.values() if engine.table is not None)

    def _queue_again(self, lease: Lease, submit: Submit) -> bool:
        queued = self._queue(lease, submit)
        if queued and lease.attempts:
            metrics.RETRIES.labels(submit.model).inc()
        return queued

    def _lost(self, engine: _Engine) -> None:
        """Handles an engine's death. It writes to no slot any more. Its requests go to other engines, or wait."""
        engine.die()
        for lease in [each for each in self._waiting.values() if each.engine is engine]:
            lease.engine = None
            lease.sent = False
            submit = lease.submit
            assert submit is not None
            if lease.released:
                self._end(submit.id, EngineDied("the engine died"))
            elif lease.attempts >= _ATTEMPTS:
                log.error("giving up on a request that was with the engine %d times when it died", lease.attempts)
                self._end(submit.id, EngineDied(f"the engine died {lease.attempts} times on this request"))
            else:
                self._queue_again(lease, submit)
        self._hold_for_a_while()
        self._on_loss()

    def _hold_for_a_while(self) -> None:
        if self._hold is None:
            self._hold = self._loop.call_later(_HOLD, self._give_up)

    def _give_up(self) -> None:
        self._hold = None
        for _, submit in self._unplaced():
            self._end(submit.id, ModelUnavailable("the engine does not come back", retry_after=5.0))
        if self.lost and any(engine.complete for engine in self._engines.values()):
            # Versions that only a lost engine had are no longer served.
            for engine in self._engines.values():
                engine.table = None if engine.lost else engine.table
            self._tell_table()
