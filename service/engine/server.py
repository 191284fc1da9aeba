"""The engine process: owns one device, its sessions and its queues, and has a channel to every front end."""

import asyncio
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvloop
from watchfiles import awatch

from convoy.service import log, metric_files, metrics
from convoy.service.buckets import Size, rounded
from convoy.service.config import Config
from convoy.service.engine.dispatcher import Dispatcher, Ended
from convoy.service.engine.instances import Instances
from convoy.service.engine.learned_buckets import Sizes
from convoy.service.engine.model_loader import Loaded, Loader
from convoy.service.engine.profiling import largest_batch
from convoy.service.engine.runner import Ran, Work
from convoy.service.engine.scheduler.batcher import Batch, Key, Limits, Request
from convoy.service.errors import ConvoyError, UnknownModel
from convoy.service.ipc import messages
from convoy.service.ipc.channel import (
    NEVER,
    Cancel,
    Cancelled,
    Failure,
    Hello,
    Packet,
    Record,
    Release,
    Submit,
    TableFile,
    Wire,
)
from convoy.service.ipc.slots import SharedMemory, memory_file
from convoy.service.metadata import Document
from convoy.service.repository import Table, encode_table

logger = logging.getLogger(__name__)


class Peer:
    """The engine's side of a front end. One writer: the engine's loop."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.wire: Wire
        self.memory: SharedMemory | None = None


class Engine:
    """One device: requests from front ends enter its queues, and the results return to the front ends."""

    def __init__(
        self,
        root: Path,
        config: Config,
        announce: Callable[[messages.Suspect | None], None] = lambda what: None,
        suspects: dict[messages.Suspect, int] | None = None,
    ) -> None:
        self._root = root
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._dispatcher = Dispatcher(self._instances_of, self._answer, self._end, _volume)
        self._levels = metrics.Levels(self._write_levels)
        self._asked: set[str] = set()  # models that have received requests
        self._peers: dict[Hashable, Peer] = {}  # by number, never reused
        self._table = Table()
        self._loader = Loader(root, config, self._publish_soon, announce, suspects or {})
        self._unreleased: dict[
            tuple[str, int], set[Hashable]
        ] = {}  # retired versions -> front ends that may refer to them
        self._profiled: dict[tuple[str, int], Loaded] = {}  # versions whose profile the batcher has
        self._loading = ThreadPoolExecutor(1, "load")
        self._choosing: set[asyncio.Task[None]] = set()
        self._sizes: dict[tuple[str, int], Sizes] = {}  # image sizes, for versions that learn their buckets

    async def serve(self) -> None:
        """Loads the repository and follows its changes. Never returns."""
        await self._refresh()
        poll = self._config.repository.poll_seconds
        told = False
        while True:
            there = _identity(self._root)
            changes = awatch(self._root, rust_timeout=round(poll * 1000), yield_on_timeout=True, debounce=200, step=50)
            try:
                # The path may be a symbolic link. If its target is swapped, the new folder must be watched.
                while _identity(self._root) == there:
                    await anext(changes)
                    told = False
                    await self._refresh()
            except (OSError, RuntimeError) as error:  # watchfiles raises RuntimeError, as without inotify instances
                if not told:
                    reason = getattr(error, "strerror", None) or str(error)
                    logger.error("model repository cannot be watched: %s; it is looked at by polling", reason)
                told = True
                await asyncio.sleep(poll)
            finally:
                await changes.aclose()
            await self._refresh()

    async def _refresh(self) -> None:
        await self._loop.run_in_executor(self._loading, self._loader.refresh)

    def attach(self, number: int, connection: socket.socket) -> None:
        """Connects a front end's channel and sends it the table."""
        peer = Peer(number)
        peer.wire = Wire(connection, lambda packet: self._read(peer, packet), lambda: self._detach(peer))
        self._peers[number] = peer
        self._send_table(peer)

    def _detach(self, peer: Peer) -> None:
        self._peers.pop(peer.number, None)
        for request in self._dispatcher.forget(peer.number):
            self._end(request, Cancelled("the front end has gone"))
        for (model, version), unreleased in list(self._unreleased.items()):
            unreleased.discard(peer.number)
            self._drop_if_released(model, version)

    def _publish_soon(self, table: Table) -> None:
        # The loader calls this in its own thread.
        self._loop.call_soon_threadsafe(self._publish, table)

    def _publish(self, table: Table) -> None:
        self._table = table
        for (model, version), loaded in list(self._loader.versions.items()):
            self._take_profile(model, version, loaded)
            if self._loader.is_retired(model, version):
                self._unreleased.setdefault((model, version), set(self._peers))
                self._drop_if_released(model, version)
            else:
                self._unreleased.pop((model, version), None)
        for peer in list(self._peers.values()):  # a copy: a failed send removes its peer
            self._send_table(peer)

    def _take_profile(self, model: str, version: int, loaded: Loaded) -> None:
        if self._profiled.get((model, version)) is not loaded:
            self._profiled[model, version] = loaded
            for profile in loaded.profiles:
                limits = self._limits(loaded, profile.shape)
                self._dispatcher.measured(Key(model, version, profile.key), limits, profile.seconds)

    def _send_table(self, peer: Peer) -> None:
        data = encode_table(self._table)
        descriptor = memory_file(len(data))
        os.pwrite(descriptor, data, 0)
        peer.wire.send([TableFile(len(data))], [descriptor])
        os.close(descriptor)

    def _drop_if_released(self, model: str, version: int) -> None:
        # A version that is not retired has no set at all, while an empty set means that every front end has released
        # it. The empty set stays until the loader's thread, which owns `versions`, has dropped the version.
        if not self._unreleased.get((model, version), {0}):
            dropping = self._loop.run_in_executor(self._loading, self._loader.drop, model, version)
            dropping.add_done_callback(lambda _: self._dropped(model, version))

    def _dropped(self, model: str, version: int) -> None:
        if (model, version) in self._loader.versions or (model, version) not in self._unreleased:
            return  # it serves again, or is already dropped
        del self._unreleased[model, version]
        self._profiled.pop((model, version), None)
        self._sizes.pop((model, version), None)
        self._loop.call_later(self._config.server.keep_metrics_seconds, self._forget, model, version)

    def _forget(self, model: str, version: int) -> None:
        if (model, version) not in self._loader.versions:
            metric_files.forget_version(model, version)

    def _read(self, peer: Peer, packet: Packet) -> None:
        descriptors = iter(packet.descriptors)
        failures: list[Record] = []
        for record in packet.records:
            match record:
                case Submit():
                    try:
                        self._queue(peer, record)
                    except ConvoyError as error:
                        failures.append(Failure(record.id, error))
                case Cancel(id=id_):
                    if request := self._dispatcher.cancel((peer.number, id_)):
                        self._end(request, Cancelled("the caller has gone"))
                case Hello(arena_bytes=nbytes):
                    descriptor = next(descriptors)
                    peer.memory = SharedMemory(descriptor, nbytes)
                    os.close(descriptor)
                case Release(model=model, version=version):
                    self._unreleased.get((model, version), set()).discard(peer.number)
                    self._drop_if_released(model, version)
        if failures:
            peer.wire.send(failures)
        self._dispatcher.pump()

    def _queue(self, peer: Peer, submit: Submit) -> None:
        self._dispatcher.expect(submit.model, peer.number, submit.following, submit.company, submit.arrived / 1e9)
        loaded = self._loader.versions.get((submit.model, submit.version))
        if loaded is None:
            raise UnknownModel(f"version {submit.version} of model {submit.model!r} is no longer served")
        assert peer.memory is not None, "a front end says hello before it submits"
        first = 1 if loaded.session.batched else 0
        shape = tuple((span.shape[first:], span.dtype) for span in submit.inputs)
        arrived = submit.arrived / 1e9
        request = Request(
            id=(peer.number, submit.id),
            source=peer.number,
            rows=submit.rows if loaded.session.batched else 1,  # more only from a front end with an old table
            arrived=arrived,
            deadline=arrived + loaded.allowed if submit.deadline == NEVER else submit.deadline / 1e9,
            low_priority=submit.low_priority,
            payload=Work(submit, peer.memory),
        )
        if loaded.learns and submit.image[0]:
            self._see(submit, loaded)
        key = Key(submit.model, submit.version, shape)
        self._dispatcher.add(key, request, self._limits(loaded, submit.inputs[0].shape[first:]), time.monotonic())
        self._asked.add(submit.model)
        self._levels.changed()

    def _see(self, submit: Submit, loaded: Loaded) -> None:
        """Records an image's size, and periodically chooses buckets from the recorded sizes."""
        document = loaded.session.document
        assert document is not None
        sizes = self._sizes.setdefault((submit.model, submit.version), Sizes())
        due = sizes.see(rounded(document.image, *submit.image), submit.rows)
        if due and not self._choosing:
            task = asyncio.ensure_future(self._choose_buckets(submit.model, submit.version, loaded, sizes.look()))
            self._choosing.add(task)
            task.add_done_callback(self._choosing.discard)

    async def _choose_buckets(self, model: str, version: int, loaded: Loaded, images: dict[Size, float]) -> None:
        # While new shapes run for the first time, no batch may run on the loop, where it could wait for one of them.
        loaded.instances.hold(1)
        try:
            await self._loop.run_in_executor(self._loading, self._loader.choose_buckets, model, version, images)
        finally:
            loaded.instances.hold(-1)

    def _limits(self, loaded: Loaded, shape: tuple[int, ...]) -> Limits:
        document, most = loaded.session.document, loaded.limits.max_batch_size
        fitting = largest_batch(document, shape, most, self._config.batching.max_batch_pixels)
        return loaded.limits if fitting == most else replace(loaded.limits, max_batch_size=fitting)

    def _instances_of(self, model: str, version: int) -> Instances | None:
        loaded = self._loader.versions.get((model, version))
        return loaded.instances if loaded is not None else None

    def _answer(self, ended: Ended) -> None:
        batch, ran = ended.batch, ended.ran
        if ended.session.apart and self._loader.joins(batch.key.model, batch.key.version):
            # This batch has shown it. Until the loader has recorded it, the session itself runs requests alone.
            self._loop.run_in_executor(
                self._loading, self._loader.run_apart, batch.key.model, batch.key.version, ended.session.apart
            )
        self._levels.changed()
        _count(batch, ran, ended.session.document, self._config.engine.device)
        records: dict[Hashable, tuple[list[Record], list[int]]] = {}
        for request, done in zip(batch.requests, ran.ends, strict=True):
            own, descriptors = records.setdefault(request.source, ([], []))
            own.append(done.record)
            descriptors.extend(done.descriptors)
        for number, (own, descriptors) in records.items():
            if number in self._peers:
                self._peers[number].wire.send(own, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)

    def _end(self, request: Request, error: ConvoyError) -> None:
        """Reports a request that left the queue and will not run to its front end, if that is still connected."""
        peer = self._peers.get(request.source)
        if peer is not None:
            peer.wire.send([Failure(request.payload.submit.id, error)])
        self._levels.changed()

    def _write_levels(self) -> None:
        for model in self._asked:
            metrics.QUEUE_DEPTH.labels(model, self._config.engine.device).set(self._dispatcher.waiting(model))


def _identity(folder: Path) -> tuple[int, int] | None:
    """Returns the device and inode that a path leads to now, or None if it leads nowhere."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _volume(shape: Hashable) -> float:
    """Returns the bytes of one row, from which the run time of an unmeasured shape is estimated."""
    assert isinstance(shape, tuple)
    return float(max(1, sum(math.prod(sides) * dtype.itemsize for sides, dtype in shape)))


def _count(batch: Batch, ran: Ran, document: Document | None, device: int) -> None:
    # Called before the answers are sent, so that a caller with an answer finds it counted.
    key, version = batch.key, str(batch.key.version)
    if document is not None and document.input is not None:
        submits = [request.payload.submit for request in batch.requests]
        places = document.takes.places(submits[0].inputs[0].shape[1:])
        metrics.INPUT_PIXELS.labels(key.model, version).inc(batch.rows * places)
        if document.image.fit in ("pad", "letterbox"):
            used = sum(submit.rows * submit.image[0] * submit.image[1] for submit in submits if submit.image[0])
            rows = sum(submit.rows for submit in submits if submit.image[0])
            metrics.PADDING.labels(key.model, version).inc(rows * places - used)
    for size, times in ran.batches:
        sizes, batches, gather, inside, scatter, last = _batch_counters(key.model, version, size, device)
        sizes.observe(size)
        batches.inc()
        gather.inc((times.run - times.gather) / 1e9)
        inside.inc((times.scatter - times.run) / 1e9)
        scatter.inc((times.done - times.scatter) / 1e9)
        last.set(time.time())


@lru_cache(maxsize=1024)
def _batch_counters(model: str, version: str, size: int, device: int) -> tuple[Any, ...]:
    # Cached, because looking up labels takes longer than counting.
    stages = [metrics.BATCH_STAGE.labels(model, version, size, stage) for stage in ("gather", "run", "scatter")]
    return (
        metrics.BATCH_SIZE.labels(model, version),
        metrics.BATCHES.labels(model, version, size, device),
        *stages,
        metrics.LAST_INFERENCE.labels(model, version),
    )


async def _main(supervisor: socket.socket) -> None:
    start = messages.receive_start(supervisor)
    several = len(start.devices) > 1
    log.configure(start.config.server.log_level, f"engine {start.config.engine.device}" if several else "engine")

    def announce(what: messages.Suspect | None) -> None:
        with suppress(OSError):  # the supervisor has died; this process is about to exit
            messages.send(supervisor, messages.Loading(what))

    engine = Engine(Path(start.repository), start.config, announce, dict(start.suspects))
    over = asyncio.Event()

    def take(message: messages.Message, connection: socket.socket | None) -> None:
        if isinstance(message, messages.Link) and connection is not None:
            engine.attach(message.peer, connection)

    # The channel closes when nothing is left to do or the supervisor has died. Either way, the engine exits.
    messages.listen(supervisor, take, over.set)
    serving = asyncio.ensure_future(engine.serve())
    ending = asyncio.ensure_future(over.wait())
    await asyncio.wait([ending, serving], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()


def main() -> None:
    """Runs an engine; the first argument is the descriptor of the channel to the supervisor."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(connection))
    # Threads may still be inside onnxruntime; their results are no longer needed.
    os._exit(0)


if __name__ == "__main__":
    main()
