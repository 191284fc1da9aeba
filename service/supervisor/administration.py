"""What callers of the administration port change while the server runs, and how every process learns of it."""

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence

import msgspec

from convoy.service import log as logs
from convoy.service.config import Config
from convoy.service.errors import BadRequest, ConvoyError, ModelUnavailable, named
from convoy.service.ipc import messages
from convoy.service.ipc.messages import Applied
from convoy.service.supervisor.processes import Kind

log = logging.getLogger(__name__)

MOST_REGION_BYTES = 4 << 30  # of all regions: writing to a sparse file takes memory, for which the server may pay
_SECONDS = 10.0
_BETWEEN = 0.05  # seconds between two attempts to send to a process that does not read


class Administration:
    """What has been changed since the start, for the processes that start later; and the changes in progress.

    A change is made in every process that it concerns, and each confirms it. Then the caller has its answer: whatever
    process serves its next call knows of the change. One writer: the supervisor's loop.
    """

    def __init__(self, config: Config, seconds: float = _SECONDS) -> None:
        """`seconds` is how long a process may take to confirm what takes no time."""
        self._seconds = seconds
        self._unloaded: set[str] = set()
        self._regions: dict[str, tuple[messages.Region, int]] = {}  # with their descriptors
        self._tracing: dict[str, messages.Tracing] = {}  # by model
        self._level = config.server.log_level
        self._processes: dict[int, tuple[Kind, socket.socket]] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[int, int], asyncio.Future[Applied]] = {}  # by change and process
        self._sending = asyncio.Lock()  # so that all processes receive changes in one order
        self._tasks: set[asyncio.Task[None]] = set()

    def configured(self, config: Config) -> Config:
        """Returns the configuration of a process that starts now."""
        server = msgspec.structs.replace(config.server, log_level=self._level)
        return msgspec.structs.replace(config, server=server)

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Models that do not serve, because somebody has asked for that."""
        return tuple(sorted(self._unloaded))

    @property
    def regions(self) -> tuple[messages.Region, ...]:
        """Regions of shared memory."""
        return tuple(region for region, _ in self._regions.values())

    @property
    def descriptors(self) -> list[int]:
        """Those of the regions, in their order."""
        return [descriptor for _, descriptor in self._regions.values()]

    @property
    def tracing(self) -> tuple[messages.Tracing, ...]:
        """The settings of traces."""
        return tuple(self._tracing.values())

    def add(self, number: int, kind: Kind, channel: socket.socket) -> None:
        """Adds a process that has been sent its role, and with it all changes so far."""
        self._processes[number] = kind, channel

    def remove(self, number: int) -> None:
        """Removes a process that has ended: it confirms nothing any more."""
        self._processes.pop(number, None)
        for (change, process), waiting in list(self._waiting.items()):
            if process == number:
                self._confirm(change, process, waiting, _DIED)

    def receive(self, number: int, message: messages.Message, descriptors: Sequence[int]) -> None:
        """Accepts what a process says about changes."""
        if isinstance(message, Applied):
            waiting = self._waiting.get((message.number, number))
            if waiting is not None:
                self._confirm(message.number, number, waiting, message)
        elif isinstance(message, messages.Ask):
            task = asyncio.get_running_loop().create_task(self._answer(number, message, descriptors))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _confirm(self, change: int, process: int, waiting: "asyncio.Future[Applied]", applied: Applied) -> None:
        del self._waiting[change, process]
        if not waiting.done():
            waiting.set_result(applied)

    async def _answer(self, number: int, ask: messages.Ask, descriptors: Sequence[int]) -> None:
        refusal = None
        try:
            await self._make(ask.change, descriptors)
        except ConvoyError as error:
            refusal = messages.refusal_of(error)
        except Exception:  # one change fails, not the server
            log.exception("a change that was asked for has failed")
            refusal = messages.refusal_of(ConvoyError("internal error"))
        await self._send(number, messages.Outcome(ask.number, refusal))

    async def _make(self, change: messages.Change, descriptors: Sequence[int]) -> None:
        match change:
            case messages.Load(model=model):
                await self._load(model)
            case messages.Unload(model=model):
                await self._unload(model)
            case messages.Region():
                await self._register(change, descriptors[0])
            case messages.Forget(region=name):
                await self._forget(name)
            case messages.Logging(level=level):
                self._level = level
                logs.set_level(level)
                log.info("the log has level %s", level)
                _check(await self._distribute(("engine", "frontend"), change))
            case messages.Tracing(model=model):
                self._tracing.pop(model, None)
                if (change.on, change.rate) != (None, None):
                    self._tracing[model] = change
                _check(await self._distribute(("frontend",), change))

    async def _load(self, model: str) -> None:
        self._unloaded.discard(model)
        answers = await self._of_engines(messages.Load(model))
        for answer in answers:
            if answer.refusal is not None:
                raise messages.error_of(answer.refusal)
        await self._show(model, max(answer.version for answer in answers))

    async def _unload(self, model: str) -> None:
        known = model in self._unloaded
        self._unloaded.add(model)  # an engine that starts meanwhile must not load it
        answers = await self._of_engines(messages.Unload(model))
        unknown = [answer.refusal for answer in answers if answer.refusal is not None and answer is not _DIED]
        if len(unknown) == len(answers) and not known:
            self._unloaded.discard(model)
            raise messages.error_of(unknown[0])
        log.info("model %s is unloaded on request", model)
        await self._show(model, 0)

    async def _of_engines(self, change: messages.Change) -> list[Applied]:
        answers = await self._distribute(("engine",), change, long=True)
        if not answers:
            raise ModelUnavailable("no engine is running now: the next one is starting")
        return answers

    async def _show(self, model: str, version: int) -> None:
        """Waits until every front end has the table that results. Where it does not come, something else has changed
        it since."""
        await self._distribute(("frontend",), messages.Shown(model, version))

    async def _register(self, region: messages.Region, given: int) -> None:
        try:
            if region.name in self._regions:
                raise BadRequest(f"region {named(region.name)} is already registered: unregister it first")
            if len(self._regions) >= messages.MOST_REGIONS:
                raise BadRequest(f"{len(self._regions)} regions are registered, want at most {messages.MOST_REGIONS}")
            nbytes = region.nbytes + sum(other.nbytes for other in self.regions)
            if nbytes > MOST_REGION_BYTES:
                raise BadRequest(
                    f"region {named(region.name)} has {region.nbytes} bytes, which makes {nbytes} with all others, "
                    f"want at most {MOST_REGION_BYTES}"
                )
        except BadRequest:
            os.close(given)
            raise
        self._regions[region.name] = region, given
        _check(await self._distribute(("frontend",), region, (given,)))

    async def _forget(self, name: str) -> None:
        names = [name] if name else list(self._regions)
        closing = [self._regions.pop(each)[1] for each in names if each in self._regions]
        try:
            _check(await self._distribute(("frontend",), messages.Forget(name)))
        finally:
            for descriptor in closing:
                os.close(descriptor)

    async def _distribute(
        self,
        kinds: Sequence[Kind],
        change: messages.Change,
        descriptors: Sequence[int] = (),
        *,
        long: bool = False,
    ) -> list[Applied]:
        """Sends a change to all processes of some kinds, and returns what each says. `long`: it may take long."""
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        wanted = [process for process, (kind, _) in self._processes.items() if kind in kinds]
        waiting: Mapping[int, asyncio.Future[Applied]] = {process: loop.create_future() for process in wanted}
        self._waiting |= {(number, process): future for process, future in waiting.items()}
        # The descriptors may be closed once the lock is free: then they have been sent.
        async with self._sending:
            for process in wanted:
                if not await self._send(process, messages.Apply(number, change), descriptors):
                    self._give_up(number, process)
        if waiting:
            await asyncio.wait(waiting.values(), timeout=None if long else self._seconds)
        for process in wanted:
            self._give_up(number, process)
        return [future.result() for future in waiting.values()]

    def _give_up(self, change: int, process: int) -> None:
        waiting = self._waiting.get((change, process))
        if waiting is not None:
            self._confirm(change, process, waiting, _SILENT)

    async def _send(self, process: int, message: messages.Message, descriptors: Sequence[int] = ()) -> bool:
        """Sends a message once the process reads. Returns whether it was sent: not if the process has ended, or reads
        nothing for long."""
        end = time.monotonic() + self._seconds
        while process in self._processes and time.monotonic() < end:
            try:
                messages.send(self._processes[process][1], message, descriptors)
            except BlockingIOError:
                await asyncio.sleep(_BETWEEN)
            except OSError:
                return False
            else:
                return True
        return False


def _unavailable(message: str) -> Applied:
    return Applied(0, messages.refusal_of(ModelUnavailable(message)))


_DIED = _unavailable("a process ended before it had made the change")
_SILENT = _unavailable("a process does not answer, so that the change is not complete")


def _check(answers: Sequence[Applied]) -> None:
    """Raises the first refusal, if there is one. A process that has ended counts as changed: its successor is."""
    for answer in answers:
        if answer.refusal is not None and answer is not _DIED:
            raise messages.error_of(answer.refusal)
