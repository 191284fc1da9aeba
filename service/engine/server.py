"""The engine process: owns one device, its sessions and its queues, and has a channel to every front end."""

import asyncio
import gc
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from convoy.service import log, metrics
from convoy.service.buckets import Size, rounded
from convoy.service.config import Config
from convoy.service.engine import file_trials
from convoy.service.engine.acceptance import Acceptance, Folders
from convoy.service.engine.dispatcher import Dispatcher
from convoy.service.engine.file_trials import FileTrials
from convoy.service.engine.following import follow
from convoy.service.engine.instances import Instance, Instances
from convoy.service.engine.learned_buckets import Sizes
from convoy.service.engine.model_loader import Loader
from convoy.service.engine.publication import Publication
from convoy.service.engine.run_watch import RunWatch
from convoy.service.engine.runner import Run
from convoy.service.engine.scheduler.batcher import Batch
from convoy.service.engine.scheduler.request_queue import Key
from convoy.service.engine.session import Session, check_example
from convoy.service.engine.session_builder import Loaded
from convoy.service.engine.terms import Terms, count, count_backlog, first_of, terms_of, volume
from convoy.service.errors import ConvoyError, ModelUnavailable
from convoy.service.ipc import messages
from convoy.service.ipc.channel import Cancel, Cancelled, Failure, Hello, Record, Release, Request, Wire
from convoy.service.ipc.pulse import Pulse, beat
from convoy.service.ipc.slots import SharedMemory
from convoy.service.repository import Table
from convoy.service.sources import Source

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY = 1.0  # seconds until the next attempt to tell a supervisor that does not read
_STORE = 5.0  # seconds before changed batch times are stored: others may change, too
_MOST_SHAPES = 1024  # whose terms are kept; clients may send any number


class Engine:
    """One device: requests from front ends enter its queues, and the results return to the front ends."""

    def __init__(
        self,
        source: Source,
        config: Config,
        announce: Callable[[messages.Suspect | None], None] = lambda what: None,
        suspects: dict[messages.Suspect, int] | None = None,
        withdrawn: Collection[tuple[str, int]] = (),
        on_run: Callable[[int], None] = lambda batches: None,
        trials: FileTrials | None = None,
        folders: Folders | None = None,
        unloaded: Collection[str] = (),
    ) -> None:
        """Without `trials`, the process itself is the first to read the files of the repository. For `on_run` see
        Dispatcher, for the others Loader."""
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._dispatcher = Dispatcher(self._instances_of, self._answer, self._fail, self._revise, volume, on_run)
        self._watch = RunWatch(config.engine.run_limit_seconds, config.engine.first_run_limit_seconds)
        self._levels = metrics.Levels(self._write_levels)
        self._requested: set[str] = set()  # models that have received requests
        self._wires: dict[int, Wire] = {}  # of the front ends, by number, never reused
        self._memory: dict[int, SharedMemory] = {}  # of the front ends
        if trials is None or folders is None:
            self._loader = Loader(
                source, config, self._publish_soon, announce, suspects or {}, withdrawn, unloaded=unloaded
            )
        else:
            acceptance = Acceptance(source, config, trials, folders, self._look_again_soon)
            self._loader = Loader(
                source,
                config,
                self._publish_soon,
                announce,
                suspects or {},
                withdrawn,
                acceptance=acceptance,
                read_settings=trials.settings,
                unloaded=unloaded,
            )
        self._loading = ThreadPoolExecutor(1, "load")
        self._looking: asyncio.Task[None] | None = None  # a look at the repository that has not begun
        self.complete = asyncio.Event()  # all that is in the repository at the start is loaded, or cannot be
        self._published = asyncio.Event()  # set, and replaced by another, with each table
        keep = config.server.keep_metrics_seconds
        self._publication = Publication(self._loader, self._loading, self._wires, keep, self._drop)
        self._profiled: dict[tuple[str, int], Instances] = {}  # versions whose profile the batcher has
        self._revised: dict[Key, Mapping[int, float]] = {}  # seconds by batch size, soon to be stored
        self._terms: dict[Key, Terms] = {}
        self._choosing: set[asyncio.Task[None]] = set()
        self._sizes: dict[tuple[str, int], Sizes] = {}  # image sizes, for versions that learn their buckets

    async def refresh(self) -> None:
        """Brings the loaded versions up to date with the repository."""
        await self._loop.run_in_executor(self._loading, self._loader.refresh)

    def _look_again_soon(self) -> None:
        # A trial's thread calls this.
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        if self._looking is None:
            self._looking = self._loop.create_task(self._refresh_once())

    async def _refresh_once(self) -> None:
        def refresh() -> None:
            self._looking = None
            self._loader.refresh()

        await self._in_loader(refresh)

    async def _in_loader(self, act: Callable[..., T], *arguments: Any) -> T:
        """Calls a method of the loader in its thread. Without that the engine cannot continue."""
        try:
            return await self._loop.run_in_executor(self._loading, act, *arguments)
        except ConvoyError:
            raise
        except Exception:
            logger.exception("the engine cannot continue")
            os._exit(1)

    async def load(self, model: str) -> int:
        """Looks at a model's folder now. Returns the newest version once it serves.

        Raises UnknownModel, and ModelUnavailable with the reason why it does not serve.
        """
        await self._in_loader(self._loader.load, model)
        while True:
            published = self._published  # before the question: what changes later is not missed
            version = await self._in_loader(self._loader.outcome, model)
            if version is not None:
                return version
            await published.wait()

    async def unload(self, model: str) -> None:
        """Ends a model's service; its requests in flight are answered. Raises UnknownModel."""
        await self._in_loader(self._loader.unload, model)

    async def keep_checking(self, seconds: float) -> None:
        """Repeats the examples of all versions, each in an idle moment. Exits if an answer is wrong: then no other
        answer of this process can be trusted."""
        while True:
            await asyncio.sleep(seconds)
            for (model, version), loaded in list(self._loader.versions.items()):
                for instance in loaded.instances.all:
                    if not self._dispatcher.backlog(model)[0] and not instance.running:
                        await self._check(model, version, loaded, instance)

    async def _check(self, model: str, version: int, loaded: Loaded, instance: Instance) -> None:
        loaded.instances.keep_off_loop(1)
        try:
            wrong = await asyncio.wrap_future(instance.submit(check_example, instance.session))
        except Exception as error:
            logger.exception("model %s version %d: the run of its example failed", model, version)
            wrong = type(error).__name__
        finally:
            loaded.instances.keep_off_loop(-1)
        if wrong:
            metrics.EXAMPLE_FAILURES.labels(model, version).inc()
            logger.error("the engine cannot continue: model %s version %d: its example: %s", model, version, wrong)
            os._exit(1)

    def attach(self, number: int, connection: socket.socket) -> None:
        """Connects a front end's channel and sends it the table."""
        wire = Wire(connection, lambda *packet: self._read(number, *packet), lambda: self._detach(number))
        self._wires[number] = wire
        self._publication.send(wire)

    def withdraw(self, model: str, version: int) -> None:
        """Ends the service of a version whose inputs end engines."""
        self._loop.run_in_executor(self._loading, self._loader.withdraw, model, version)
        self._drop(model, version)

    def check_runs(self) -> None:
        """Ends the process if a run hangs: nothing else ends the run."""
        if (hung := self._watch.hung(self._dispatcher.running(), time.monotonic())) is not None:
            batch, seconds = hung
            key = batch.key
            logger.error("a run of model %s version %d hangs: %.1f s so far", key.model, key.version, seconds)
            os._exit(1)

    def _detach(self, number: int) -> None:
        self._wires.pop(number, None)
        self._memory.pop(number, None)
        for request in self._dispatcher.forget(number):
            self._fail(request, Cancelled("the front end has disconnected"))
        self._publication.forget(number)
        gc.collect()  # cycles would keep the memory of a front end that has died until the next collection

    def _publish_soon(self, table: Table) -> None:
        # The loader calls this in its own thread.
        self._loop.call_soon_threadsafe(self._publish, table)

    def _publish(self, table: Table) -> None:
        for (model, version), loaded in self._loader.versions.items():
            # Once: the batcher then knows better, also when the version changes in other respects.
            if self._profiled.get((model, version)) is not loaded.instances:
                self._profiled[model, version] = loaded.instances
                for profile in loaded.profiles:
                    key = Key(model, version, profile.key)
                    self._dispatcher.measured(key, self._terms_of(key, loaded).limits, profile.seconds)
        self._publication.publish(table)
        if table.complete:
            self.complete.set()
        self._published.set()
        self._published = asyncio.Event()

    def _drop(self, model: str, version: int) -> None:
        self._profiled.pop((model, version), None)
        self._sizes.pop((model, version), None)
        self._dispatcher.drop(model, version)
        for key in [key for key in self._terms if key[:2] == (model, version)]:
            del self._terms[key]

    def _read(self, number: int, records: list[Record], descriptors: list[int]) -> None:
        failures: list[Record] = []
        for record in records:
            match record:
                case Request():
                    try:
                        self._queue(number, record)
                    except ConvoyError as error:
                        failures.append(Failure(record.id, error))
                case Cancel(id=id_):
                    if request := self._dispatcher.cancel(number, id_):
                        self._fail(request, Cancelled("the caller has cancelled"))
                case Hello(arena_bytes=nbytes):
                    self._map(number, descriptors, nbytes)
                case Release(model=model, version=version):
                    self._publication.release(number, model, version)
        self._send(number, failures)
        self._dispatcher.pump()

    def _map(self, number: int, descriptors: list[int], nbytes: int) -> None:
        """Maps the memory of a front end. Ends the process if that is impossible: the next engine starts with none."""
        try:
            descriptor = descriptors.pop(0)
            self._memory[number] = SharedMemory(descriptor, nbytes)
        except (OSError, IndexError) as error:  # no memory; no descriptor left, so that it was lost on its way
            reason = getattr(error, "strerror", None) or "too many open files"
            logger.error("slot memory of a front end, %d bytes, cannot be mapped: %s", nbytes, reason)
            os._exit(1)
        os.close(descriptor)

    def _queue(self, number: int, request: Request) -> None:
        model, version = request.model, request.version
        self._dispatcher.expect(model, number, request.following, request.in_flight, request.arrived)
        loaded = self._loader.versions.get((model, version))
        if loaded is None:
            raise ModelUnavailable(f"version {version} of model {model!r} is no longer served", retry_after=0.1)
        request.source = number
        request.memory = self._memory[number]  # a front end sends Hello first
        if loaded.session.batched:
            shape = tuple([(span.shape[1:], span.dtype) for span in request.inputs])
        else:
            shape = tuple([(span.shape, span.dtype) for span in request.inputs])
            request.rows = 1  # more only from a front end with an old table
        if request.deadline == math.inf:
            request.deadline = request.arrived + loaded.allowed
        if loaded.learns and request.image[0]:
            self._record_size(request, loaded)
        key = Key(model, version, shape, request.alone)
        self._dispatcher.add(key, request, self._terms_of(key, loaded).limits, time.monotonic())
        self._requested.add(model)
        self._levels.changed()

    def _terms_of(self, key: Key, loaded: Loaded) -> Terms:
        terms = self._terms.get(key)
        if terms is None or terms.basis is not loaded.limits:
            if len(self._terms) >= _MOST_SHAPES:
                self._terms.clear()
            terms = self._terms[key] = terms_of(loaded, first_of(key), self._config, key.alone)
        return terms

    def _record_size(self, request: Request, loaded: Loaded) -> None:
        """Records an image's size, and periodically chooses buckets from the recorded sizes."""
        document = loaded.session.document
        assert document is not None
        sizes = self._sizes.setdefault((request.model, request.version), Sizes())
        due = sizes.add(rounded(document.image, *request.image), request.rows)
        if due and not self._choosing:
            task = asyncio.ensure_future(self._choose_buckets(request.model, request.version, loaded, sizes.recent()))
            self._choosing.add(task)
            task.add_done_callback(self._choosing.discard)

    async def _choose_buckets(self, model: str, version: int, loaded: Loaded, images: dict[Size, float]) -> None:
        # While new shapes run for the first time, no batch may run on the loop, where it could wait for one of them.
        loaded.instances.keep_off_loop(1)
        try:
            await self._loop.run_in_executor(self._loading, self._loader.choose_buckets, model, version, images)
        finally:
            loaded.instances.keep_off_loop(-1)

    def _revise(self, key: Key, times: Mapping[int, float]) -> None:
        """Stores a profile that trials have changed. Changes within a few seconds are stored together."""
        if key not in self._revised:
            self._loop.call_later(_STORE, self._store, key)
        self._revised[key] = times

    def _store(self, key: Key) -> None:
        times = self._revised.pop(key)
        self._loop.run_in_executor(self._loading, self._loader.revise, key.model, key.version, key.shape, times)

    def _instances_of(self, model: str, version: int) -> Instances | None:
        loaded = self._loader.versions.get((model, version))
        return loaded.instances if loaded is not None else None

    def _answer(self, batch: Batch, run: Run, session: Session) -> None:
        """Sends the answers of a batch to its front ends."""
        model, version = batch.key.model, batch.key.version
        if session.apart and self._loader.joins(model, version):
            # This batch has shown it. Until the loader has recorded it, the session itself runs requests alone.
            self._loop.run_in_executor(self._loading, self._loader.run_apart, model, version, session.apart)
        self._levels.changed()
        # Before the answers are sent, so that a caller with an answer finds it counted.
        count(batch, run, self._terms.get(batch.key), self._config.engine.device)
        answers: dict[int, tuple[list[Record], list[int]]] = {}
        for request, (record, own) in zip(batch.requests, run.ended, strict=True):
            records, descriptors = answers.setdefault(request.source, ([], []))
            records.append(record)
            descriptors.extend(own)
        for number, (records, descriptors) in answers.items():
            self._send(number, records, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)

    def _fail(self, request: Request, error: ConvoyError) -> None:
        """Reports a request that left the queue and will not run to its front end, if that is still connected."""
        self._send(request.source, [Failure(request.id, error)])
        self._levels.changed()

    def _send(self, number: int, records: list[Record], descriptors: Sequence[int] = ()) -> None:
        if records and number in self._wires:  # otherwise the front end has disconnected
            self._wires[number].send(records, descriptors)

    def _write_levels(self) -> None:
        count_backlog({model: self._dispatcher.backlog(model) for model in self._requested}, self._config.engine.device)


async def _change(engine: Engine, order: messages.Apply, supervisor: socket.socket) -> None:
    """Makes a change that the supervisor has sent, and confirms it."""
    version, refusal = 0, None
    try:
        match order.change:
            case messages.Load(model=model):
                version = await engine.load(model)
            case messages.Unload(model=model):
                await engine.unload(model)
            case messages.Logging(level=level):
                log.set_level(level)
    except ConvoyError as error:
        refusal = messages.refusal_of(error)
    while True:
        try:
            messages.send(supervisor, messages.Applied(order.number, refusal, version))
        except BlockingIOError:  # it is stopped and its socket is full
            await asyncio.sleep(_RETRY)
        except OSError:  # it has died, and this process is about to exit
            return
        else:
            return


async def _tell_once_loaded(engine: Engine, supervisor: socket.socket) -> None:
    await engine.complete.wait()
    with suppress(OSError):  # the supervisor has died; this process is about to exit
        messages.send(supervisor, messages.Loaded())


async def _main(supervisor: socket.socket, pulse: Pulse, trying: FileTrials) -> None:
    start, _ = messages.receive_start(supervisor)
    name = f"engine {start.config.engine.device}" if len(start.devices) > 1 else "engine"
    log.configure(start.config.server.log_level, name, start.config.server.log_format)

    def announce(what: messages.Suspect | None) -> None:
        with suppress(OSError):  # the supervisor has died; this process is about to exit
            messages.send(supervisor, messages.Loading(what))

    folders = Folders(Path(start.store), start.config.engine.device, Path(start.cache))
    source = Source.named(start.repository, start.single, folders.cache)
    engine = Engine(
        source,
        start.config,
        announce,
        dict(start.suspects),
        set(start.withdrawn),
        pulse.run,
        trying,
        folders,
        start.unloaded,
    )
    telling = asyncio.ensure_future(_tell_once_loaded(engine, supervisor))
    beating = asyncio.ensure_future(beat(pulse, start.config.server.heartbeat_seconds, engine.check_runs))
    over = asyncio.Event()
    changing: set[asyncio.Task[None]] = set()

    def receive(message: messages.Message, descriptors: list[int]) -> None:
        if isinstance(message, messages.Link):
            engine.attach(message.peer, socket.socket(fileno=descriptors[0]))
        elif isinstance(message, messages.Withdraw):
            engine.withdraw(message.model, message.version)
        elif isinstance(message, messages.Apply):
            task = asyncio.ensure_future(_change(engine, message, supervisor))
            changing.add(task)
            task.add_done_callback(changing.discard)

    # The channel closes when nothing is left to do or the supervisor has died. Either way, the engine exits.
    messages.listen(supervisor, receive, over.set)
    poll = start.config.repository.poll_seconds
    serving = asyncio.ensure_future(follow(source, engine.refresh, poll))
    ending = asyncio.ensure_future(over.wait())
    if start.config.engine.check_seconds:
        checking = asyncio.ensure_future(engine.keep_checking(start.config.engine.check_seconds))
        checking.add_done_callback(lambda _: over.set())
    await asyncio.wait([ending, serving], return_when=asyncio.FIRST_COMPLETED)
    telling.cancel()
    beating.cancel()
    if serving.done():
        serving.result()


def main() -> None:
    """Runs an engine; the arguments are the descriptors of the channel to the supervisor, and of the pulse."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Before there are threads, and after everything that a trial needs has been imported.
    trying = file_trials.fork()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(connection, Pulse(int(sys.argv[2])), trying))
    # Threads may still be inside onnxruntime; their results are no longer needed.
    os._exit(0)


if __name__ == "__main__":
    main()
