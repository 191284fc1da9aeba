"""A front end's connection to the engines: claims slots, sends requests, awaits answers, survives an engine's death."""

import asyncio
import itertools
import logging
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
from convoy.service.dtypes import DTYPES
from convoy.service.errors import EngineDied, ModelUnavailable, RunFailed
from convoy.service.frontend.admission import WayBack
from convoy.service.frontend.landing import Landing
from convoy.service.frontend.routing import Engine, Engines
from convoy.service.frontend.suspects import INNOCENT, Guilty, Suspects
from convoy.service.ipc.channel import (
    DEADLY,
    Answer,
    Cancel,
    Failure,
    Hello,
    Record,
    Release,
    Request,
    TableFile,
    Wire,
)
from convoy.service.ipc.slots import SPILLED, Arena, Contents, Span, mark_of
from convoy.service.preprocess import Placement
from convoy.service.repository import Table, Version, decode_table

log = logging.getLogger(__name__)

Result = tuple[Answer, dict[int, NDArray[Any]]]

_RESTART = 30.0  # seconds for which requests wait for a dead engine's restart


class Lease:
    """A slot for one request's tensors in the memory shared with the engines: filled, run, read, and released once.

    Use it as a context manager, or call `release`. `inputs` are views; those with the numbers in `unfilled` are to be
    filled before `run`, the others lie in the memory of `landing`. The arrays that `run` returns are views, too, valid
    until the release. One owner: the caller of `claim`.
    """

    def __init__(
        self,
        client: "EngineClient",
        block: tuple[int, int],
        inputs: tuple[Span, ...],
        outputs: tuple[Span, ...],
        unfilled: Sequence[int],
        landing: Landing | None,
    ) -> None:
        self.block = block
        self.unfilled = unfilled
        self.landing = landing  # None: no input lies there
        self.placement = _NOWHERE  # the part of the input that an image fills
        self.prepared: tuple[float, ...] = ()  # when preparation began, images were decoded, the slot was filled
        self.request: Request | None = None
        self.answer: asyncio.Future[Result] | None = None
        self.attempts = 0  # times that the request was sent to an engine
        self.suspicion = INNOCENT
        self.mark = 0  # of a request that ran when an engine died, until it is decided what becomes of it
        self.held = False  # a suspect that waits for its turn
        self.engine: Engine | None = None  # the one that it is queued for or sent to
        self.sent = False  # to that engine
        self.released = False
        self._client = client
        self._inputs = inputs
        self._outputs = outputs
        self._done = 0.0  # when the engine finished it; 0: no answer yet

    @cached_property
    def inputs(self) -> list[NDArray[np.generic]]:
        """Views of the network's inputs."""
        return [self._client.arena.mapping.array(span) for span in self._inputs]

    def bytes_of(self, number: int) -> memoryview:
        """Returns the bytes of an input, to be filled."""
        return self._client.arena.mapping.view(self._inputs[number])

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs."""
        return sum([span.nbytes for span in self._inputs])

    async def run(
        self, version: Version, *, rows: int, in_flight: int, deadline: float, low_priority: bool = False
    ) -> Result:
        """Sends the request and waits. Returns the answer, and the outputs by number. See `begin`.

        Raises the engine's error: QueueFull, DeadlinePassed, RunFailed, ModelUnavailable, UnknownModel.
        """
        sent = self.begin(version, rows=rows, in_flight=in_flight, deadline=deadline, low_priority=low_priority)
        answer, outputs = await sent
        self.finished(answer)
        return answer, outputs

    def begin(
        self,
        version: Version,
        *,
        rows: int,
        in_flight: int,
        deadline: float,
        low_priority: bool = False,
        apart: bool | None = None,
    ) -> "asyncio.Future[Result]":
        """Sends the request. The answer, and the outputs by number, are in the future.

        rows       images or tensors side by side in the slot
        in_flight  requests of this model in flight in this front end, including this one
        deadline   in seconds of CLOCK_MONOTONIC, or inf
        apart      whether a row that fails leaves the others alone; by default where they are images
        """
        for span in self._outputs:
            self._client.arena.mapping.poison(span)
        now = time.monotonic()
        self.request = Request(
            id=self._client.next_id(),
            source=0,
            rows=rows,
            arrived=now,
            deadline=self._client.way_back.leave(deadline, now),
            low_priority=low_priority,
            model=version.model,
            version=version.version,
            inputs=self._inputs,
            outputs=self._outputs,
            image=(self.placement.height, self.placement.width),
            in_flight=in_flight,
            apart=self.placement.height > 0 if apart is None else apart,
            mark=mark_of(self.block),
        )
        return self._client.send(self, self.request)

    def finished(self, answer: Answer) -> None:
        """Records the answer to the request."""
        self._done = answer.times.done

    def release(self) -> None:
        """Ends the owner's use. The memory is freed once no engine may access it either. A second call does nothing."""
        if self.released:
            return
        self.released = True
        if self._done:
            self._client.way_back.learn(time.monotonic() - self._done)
        self._client.end_use(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_NOWHERE = Placement(0, 0, 0, 0, 0, 0)  # of tensors


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
        on_deadly: Callable[[Request, Guilty], None] = lambda request, guilty: None,
    ) -> None:
        """`on_deadly` is called with each request that ends engines, and its guilty part."""
        self.changed = changed  # called when the use of the memory changes
        self.arena = Arena(slot_bytes)
        self.engines = Engines(devices)
        self.way_back = WayBack()
        self._on_table = on_table
        self._on_loss = on_loss
        self._on_deadly = on_deadly
        self._waiting: dict[int, Lease] = {}  # by the id of the request
        self._unsent: dict[Engine, list[Lease]] = {}
        self._suspects: Suspects[Lease] = Suspects(self.arena.mapping)
        self._preparing: Counter[str] = Counter()  # requests, by model
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._restart: asyncio.TimerHandle | None = None

    def attach(self, connection: socket.socket, device: int = 0, *, from_outside: bool = False) -> None:
        """Connects a new engine. Waiting requests are sent again once this engine, or another, has their version.

        from_outside  whether another process killed the one before
        """
        engine = self.engines.by_device[device]
        if engine.wire is not None:
            engine.wire.close()  # the end of the previous channel has not been read yet
        self._judge(device, from_outside)
        engine.wire = Wire(connection, lambda *packet: self._read(engine, *packet), lambda: self._lose(engine))
        engine.wire.send([Hello(self.arena.nbytes)], [self.arena.descriptor])

    def refuse(self, guilty: Guilty) -> None:
        """Refuses an input that has ended engines on requests of another front end."""
        self._suspects.refuse(guilty)

    @contextmanager
    def preparing(self, model: str) -> Iterator[None]:
        """Counts a request of `model` that is being prepared, so that batches may wait briefly for it."""
        self._preparing[model] += 1
        try:
            yield
        finally:
            self._preparing[model] -= 1

    def claim(
        self,
        inputs: Iterable[tuple[str, tuple[int, ...]]],
        output_bytes: Iterable[tuple[int, int]],
        landing: Landing | None = None,
        contents: Sequence[Sequence[Contents]] = (),
    ) -> Lease:
        """Claims a slot for inputs of these (dtype, shape) and outputs of these (number, bytes). Raises QueueFull.

        An output of unknown size has 0 bytes: it arrives in its own memory. With `landing`, which only the loop may
        give, inputs stay where they have landed; `contents` has each input's, in parts.
        """
        inputs = tuple(inputs)
        landed = self._landed(inputs, contents) if landing is not None else {}
        slot = self.arena.claim(inputs, tuple(output_bytes), landed)
        self.changed()
        if not landed:
            return Lease(self, *slot, range(len(inputs)), None)
        assert landing is not None
        landing.adopt()
        return Lease(self, *slot, [number for number in range(len(inputs)) if number not in landed], landing)

    def next_id(self) -> int:
        """Returns a number that no earlier request of this front end has used."""
        return next(self._ids)

    def send(self, lease: Lease, request: Request) -> asyncio.Future[Result]:
        """See Lease.run."""
        lease.answer = self._loop.create_future()
        self._waiting[request.id] = lease
        self._queue(lease, request)
        return lease.answer

    def end_use(self, lease: Lease) -> None:
        """See Lease.release, which calls it once."""
        request = lease.request
        if request is not None and request.id in self._waiting:
            if lease.sent or lease.mark:
                if lease.engine is not None:
                    lease.engine.send([Cancel(request.id)])
                return  # the engine may still use it: its Answer or Failure frees it
            del self._waiting[request.id]
            self.engines.end(lease.engine, request, lease.nbytes)
            self._let_held_go()
        self._free(lease)

    def forget(self, model: str, version: int) -> None:
        """Reports to the engines that this front end no longer refers to a version."""
        for engine in self.engines.by_device.values():
            engine.runnable.discard((model, version))
            engine.send([Release(model, version)])

    def _free(self, lease: Lease) -> None:
        """Frees a slot that no process reads or writes any more."""
        self.arena.free(lease.block)
        if lease.landing is not None:
            lease.landing.release()
        self.changed()

    def _landed(
        self, inputs: Sequence[tuple[str, tuple[int, ...]]], contents: Sequence[Sequence[Contents]]
    ) -> dict[int, int]:
        """Returns the offsets of the inputs whose contents lie in the memory as they should, by number."""
        offsets = [self.arena.mapping.offset_of(parts) for parts in contents]
        return {
            number: offset
            for number, ((dtype, _), offset) in enumerate(zip(inputs, offsets, strict=True))
            if offset is not None and offset % DTYPES[dtype].itemsize == 0
        }

    def _queue(self, lease: Lease, request: Request) -> bool:
        """Queues a slot for an engine that has the version. Returns False if there is none: the slot then waits."""
        if not self._suspects.check(lease, request):
            self._end(request.id, EngineDied(DEADLY))
            return True
        engine = self.engines.choose(request, lease.nbytes)
        if engine is None:
            self._limit_wait()
            return False
        lease.engine = engine
        # Everything queued within one turn of the loop leaves in one packet.
        if engine not in self._unsent:
            self._unsent[engine] = []
            self._loop.call_soon(self._send_unsent, engine)
        self._unsent[engine].append(lease)
        if lease.attempts:
            metrics.RETRIES.labels(request.model).inc()
        return True

    def _send_unsent(self, engine: Engine) -> None:
        records: list[Record] = []
        for lease in self._unsent.pop(engine, ()):
            request = lease.request
            if request is None or lease.engine is not engine or request.id not in self._waiting:
                continue  # the engine died, or the caller cancelled, within this turn of the loop
            lease.sent = True
            lease.attempts += 1
            request.alone, request.skip = lease.suspicion.alone, lease.suspicion.skip
            self.arena.mapping.marks[request.mark] = 0
            request.following = self._preparing[request.model] // len(self.engines.by_device)  # this engine's share
            records.append(request)
        engine.send(records)

    def _read(self, engine: Engine, records: list[Record], descriptors: list[int]) -> None:
        for record in records:
            match record:
                case Answer(outputs=spans):
                    lease = self._waiting[record.id]
                    assert lease.request is not None
                    self.engines.learn(engine, lease.request, lease.nbytes, record)
                    outputs = {span.number: self.arena.mapping.output(span, descriptors) for span in spans}
                    self._suspects.clear(lease, lease.request)
                    self._end(record.id, self._unwritten(lease.request, record) or (record, outputs))
                case Failure(error=error):
                    self._end(record.id, error)
                case TableFile(nbytes=nbytes):
                    descriptor = descriptors.pop(0)
                    table = decode_table(os.pread(descriptor, nbytes, 0))
                    os.close(descriptor)
                    self._update(engine, table)

    def _unwritten(self, request: Request, answer: Answer) -> RunFailed | None:
        """Returns the error of an answer whose outputs are not in the slot: an earlier request's may be there."""
        if answer.failed or answer.skipped:  # these rows have none
            return None
        for span in answer.outputs:
            if span.offset != SPILLED and self.arena.mapping.is_poisoned(span):
                log.error("model %s version %d: an output was not written", request.model, request.version)
                return RunFailed("an output of the network was not passed on")
        return None

    def _end(self, request_id: int, result: Result | Exception) -> None:
        """Ends a request that the engine has finished, lost by dying, or will never receive."""
        lease = self._waiting.pop(request_id)
        assert lease.request is not None
        assert lease.answer is not None
        self.engines.end(lease.engine, lease.request, lease.nbytes)
        lease.sent = False
        lease.mark = 0
        self._let_held_go()
        if lease.released:
            self._free(lease)
        elif lease.answer.done():
            pass  # cancelled within this turn of the loop: the release frees it
        elif isinstance(result, Exception):
            lease.answer.set_exception(result)
        else:
            lease.answer.set_result(result)

    def _unplaced(self) -> list[tuple[Lease, Request]]:
        """Returns the requests that wait for an engine with their version."""
        waiting = [each for each in self._waiting.values() if each.engine is None and not each.held and not each.mark]
        return [(each, each.request) for each in waiting if each.request]

    def _update(self, engine: Engine, table: Table) -> None:
        engine.update(table)
        self._on_table(self.engines.table())
        settled = self.engines.settled
        if settled and self._restart is not None:
            self._restart.cancel()
            self._restart = None
        elif self.engines.lost:
            self._limit_wait()
        for lease, request in self._unplaced():
            self._queue_again(lease, request)
        self._let_held_go()

    def _queue_again(self, lease: Lease, request: Request) -> None:
        """Queues a slot, or ends its request if no engine will have its version."""
        if not self._queue(lease, request) and self.engines.settled:
            reason = f"model {request.model!r} is no longer served"
            self._end(request.id, ModelUnavailable(reason, retry_after=1.0))

    def _lose(self, engine: Engine) -> None:
        """Handles an engine's death. It writes to no slot any more. Its requests go to other engines, or wait."""
        engine.lose()
        self._unsent.pop(engine, None)
        self._suspects.resent &= self._waiting.keys()
        for lease in [each for each in self._waiting.values() if each.engine is engine]:
            request = lease.request
            assert request is not None
            lease.mark = self.arena.mapping.marks[request.mark] if lease.sent else 0
            lease.engine = None
            lease.sent = False
            if lease.mark and (lease.suspicion.alone or lease.released):
                # Guilty, unless another process killed the engine: the next one's channel brings the answer.
                self._suspects.mark(lease, request, engine.device)
            elif lease.mark:
                self._suspects.suspect(lease, request)
            elif lease.released:
                self._end(request.id, EngineDied("the engine died"))  # which nobody awaits
            elif lease.suspicion.alone:
                self._suspects.hold(lease)
            else:
                self._suspects.resent.add(request.id)
                self._queue(lease, request)
        self._let_held_go()
        self._limit_wait()
        self._on_loss()

    def _judge(self, device: int, from_outside: bool) -> None:
        """Decides what becomes of the requests that ran when the engine of a device died."""
        for lease in self._suspects.marked(device):
            request = lease.request
            if request is None or request.id not in self._waiting:
                continue  # it has waited too long for an engine
            if (guilty := self._suspects.judge(lease, request, from_outside)) is not None:
                log.error("an input of model %s version %d ends engines: refused", request.model, request.version)
                self._on_deadly(request, guilty)
            if lease.released or not lease.suspicion.leaves(request):
                self._end(request.id, EngineDied(DEADLY))
            else:
                self._suspects.hold(lease)

    def _let_held_go(self) -> None:
        """Sends the suspects once the requests without blame that an engine had have ended. They may end it, too."""
        if self._suspects.holding and self.engines.connected and not self._suspects.must_wait(self._waiting):
            for lease in self._suspects.let_go():
                if lease.request is not None and lease.request.id in self._waiting:
                    self._queue_again(lease, lease.request)

    def _limit_wait(self) -> None:
        """Limits the time for which requests wait for an engine."""
        if self._restart is None:
            self._restart = self._loop.call_later(_RESTART, self._end_waiting)

    def _end_waiting(self) -> None:
        self._restart = None
        waiting = [each.request for each in self._waiting.values() if each.engine is None]
        for request in [each for each in waiting if each is not None]:
            self._end(request.id, ModelUnavailable("the engine has not restarted", retry_after=5.0))
        if self.engines.drop_lost():
            self._on_table(self.engines.table())
