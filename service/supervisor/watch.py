"""Starts, watches, restarts and drains a server's processes.

Its imports delay all of them, so it imports little; the HTTP endpoints are imported once the processes have started.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from convoy.service import descriptors, machine
from convoy.service.config import MIB, Config
from convoy.service.errors import BadConfig
from convoy.service.followed import POLL_SECONDS
from convoy.service.ipc import messages
from convoy.service.ipc.pulse import seconds_between_beats
from convoy.service.sources import Source
from convoy.service.supervisor import processes
from convoy.service.supervisor.administration import Administration
from convoy.service.supervisor.children import Child, Children
from convoy.service.supervisor.doors import Doors
from convoy.service.supervisor.health import (
    Offences,
    Quarantine,
    Reading,
    Silence,
    Weight,
    read,
    restart_delay,
)
from convoy.service.supervisor.ports import Sockets
from convoy.service.supervisor.processes import Kind, Process, Processes, channel_pair
from convoy.service.supervisor.store import Store

if TYPE_CHECKING:
    from convoy.service.metrics import Running

log = logging.getLogger(__name__)

_RETRY = 5.0  # seconds until another attempt, if the system lacks resources for a start
_PATIENCE = 1.0  # seconds until a start for which callers of the gRPC port wait rather than be refused
_STEADY = 30.0  # seconds after which a process counts as stable
_WEIGH_SECONDS = 1.0  # between two looks at the memory of processes
_TELL_SECONDS = 1.0  # between two words to the front ends, which take silence for death
_SUCCESSOR_SECONDS = 60.0  # in which a successor gets ready
_POLL_SECONDS = 0.05  # between two looks at whether it is
_LAST_GRACE = 3.0  # seconds beyond the front ends' own grace, after which they are killed
_ENGINE_BYTES = 512 << 20  # that an engine maps at least besides slot memory: code, stacks, arenas


class Supervisor:
    """All processes of one server. One writer of all its state: its loop; the HTTP threads only read."""

    def __init__(
        self,
        config: Config,
        source: Source,
        sockets: Sockets,
        processes: Processes,
        doors: Doors,
        store: Store,
    ) -> None:
        self._config = config
        self._doors = doors
        self._devices = config.engine.device_numbers(machine.cuda_devices)
        self._front_ends = config.server.front_ends(machine.cores())
        descriptors.check(self._front_ends + len(self._devices))
        self._source = source
        self._addresses = sockets.addresses
        self._processes = processes
        self._store = store
        self._directory = Path(processes.directory)
        self._sockets = sockets
        self._restarts: Counter[tuple[str, int]] = Counter(
            {("frontend", 0): 0, **{("engine", device): 0 for device in self._devices}}
        )
        self._recycled: Counter[tuple[str, int]] = Counter(dict.fromkeys(self._restarts, 0))
        self._recycling: asyncio.Task[None] | None = None
        self._children = Children(self._front_ends, sockets.addresses.grpc)
        self._administration = Administration(config)
        self._pause_http: Callable[[bool], None] = lambda paused: None  # until it serves
        self._numbers = 0
        self._failed_starts: Counter[tuple[Kind, int]] = Counter()
        self._killed: set[int] = set()  # devices whose last engine was killed by another process
        self._offences = Offences()
        self._quarantine = Quarantine()
        self._stopping = asyncio.Event()
        self._unusable = False  # the settings, or what they name
        self._ending = False  # neither is an engine: the front ends have ended
        self._starts = asyncio.Lock()  # locked for one start at a time, which then links all existing processes
        self._loop = asyncio.get_running_loop()
        self._watchers: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Run until a signal; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        processes.let_through()
        addresses = self._addresses
        processes.announce(self._directory, addresses.grpc)
        fields = {"grpc": addresses.grpc, "http": addresses.http, "metrics": addresses.metrics}
        fields |= {"admin": addresses.admin} if addresses.admin else {}
        log.info("listening", extra={"fields": fields})
        async with self._starts:
            for device in self._devices:
                await self._start("engine", device)
            for _ in range(self._front_ends):
                await self._start("frontend")
        self._pause_http = await asyncio.to_thread(self._serve_http)
        telling = self._loop.create_task(self._keep_telling())
        looking = self._loop.create_task(self._look())
        weighing = self._loop.create_task(self._weigh())
        following = self._loop.create_task(self._doors.follow())
        await self._stopping.wait()
        weighing.cancel()
        code = await self._drain()
        telling.cancel()
        looking.cancel()
        following.cancel()
        self._sockets.remove()
        return 2 if self._unusable else code

    def _serve_http(self) -> Callable[[bool], None]:
        from convoy.service.supervisor import endpoints  # noqa: PLC0415  see above

        sockets = self._sockets
        return endpoints.serve(
            sockets.http,
            sockets.metrics,
            self._children.ready,
            self._directory,
            self._restarts,
            self._doors.of_ports(),
            descriptors.of_http_port(self._front_ends + len(self._devices)),
            self._recycled,
            self._running,
        )

    def _running(self) -> "list[Running]":
        from convoy.service.metrics import Running  # noqa: PLC0415  see above

        children = [
            Running(each.kind, str(each.device) if each.kind == "engine" else "", each.process.pid)
            for each in list(self._children.by_number.values())
        ]
        return [Running("supervisor", "", os.getpid()), *children]

    def _reload(self) -> None:
        # The terminal may have closed: no reason to end, as services are told by the same signal to read their files.
        log.info("SIGHUP: certificates and callers are read again; settings are not")
        self._doors.reload()
        for child in self._children.of("frontend"):
            with suppress(OSError):  # it has died: its successor reads them at its start
                messages.send(child.process.channel, messages.Reload())

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            log.warning("second signal: ending at once")
            for child in self._children.by_number.values():
                child.process.kill()
            os._exit(1)
        self._stop()

    def _stop(self) -> None:
        self._children.draining = True
        self._stopping.set()

    async def _start(self, kind: Kind, device: int = 0) -> Child:
        self._numbers += 1
        process = self._processes.start(kind)
        server = self._config.server
        processes = self._front_ends if kind == "frontend" else len(self._devices)
        limit = server.memory_bytes(kind, processes, machine.memory_bytes())
        child = self._children.by_number[self._numbers] = Child(
            kind, device, self._numbers, process, silence=Silence(server.heartbeat_seconds), weight=Weight(limit)
        )
        changed = self._administration
        front_end = kind == "frontend"
        # A proxy that calls whoever accepts connections had better call another server meanwhile.
        kept = front_end and self._front_ends == 1 and not server.listen_when_loaded
        # One front end is enough for it, and the next one takes the place of one that dies.
        child.administers = front_end and not any(other.administers for other in self._children.of("frontend"))
        start = messages.Start(
            config=changed.configured(self._config if front_end else self._config_of(device)),
            devices=self._devices,
            repository=str(self._source.root or ""),
            single={name: str(path) for name, path in self._source.single.items()},
            grpc_address=self._addresses.grpc,
            metrics_directory=str(self._directory),
            store=str(self._store.folder),
            cache=str(self._store.cache),
            suspects=self._children.deaths.most() if kind == "engine" else (),
            withdrawn=self._offences.withdrawn(time.monotonic()) if kind == "engine" else (),
            unloaded=changed.unloaded,
            admin_address=self._addresses.admin if child.administers else "",
            http=front_end and self._config.server.http_api,
            port=kept,
            joins=front_end and self._children.have_served,
            regions=changed.regions if front_end else (),
            tracing=changed.tracing if front_end else (),
            deadly=self._quarantine.deadly(time.monotonic()) if kind == "frontend" else (),
            pictures=self._quarantine.pictures(time.monotonic()) if kind == "frontend" else messages.Pictures(),
        )
        given = [self._sockets.http.fileno()] * start.http + [self._sockets.reserved.fileno()] * start.port
        given += [*changed.descriptors] * front_end
        with suppress(ConnectionError):  # it has died already: _watch handles that
            messages.send(process.channel, start, given)
        process.channel.setblocking(False)
        changed.add(child.number, kind, process.channel)
        messages.listen(process.channel, lambda *received: self._receive(child, *received), lambda: None)
        watcher = self._loop.create_task(self._watch(child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        try:
            for other in list(self._children.by_number.values()):
                self._link(child, other)
        except OSError as error:  # out of descriptors: its successor may find some
            log.error("%s cannot be linked to the others: %s", child.name, error.strerror)
            process.kill()
        return child

    def _config_of(self, device: int) -> Config:
        engine = self._config.engine.of_device(device, len(self._devices), machine.cores())
        return msgspec.structs.replace(self._config, engine=engine)

    def _link(self, one: Child, other: Child) -> None:
        """Send a front end and an engine the two ends of a new channel."""
        if one.kind == other.kind:
            return
        engine, front_end = (one, other) if one.kind == "engine" else (other, one)
        engine_end, front_end_end = channel_pair()
        with engine_end, front_end_end, suppress(OSError):  # one of the two has died: its successor gets another
            link = messages.Link(front_end.number, engine.device, engine.device in self._killed)
            messages.send(engine.process.channel, link, [engine_end.fileno()])
            messages.send(front_end.process.channel, link, [front_end_end.fileno()])

    async def _watch(self, child: Child) -> None:
        """Wait for a process to end, then start another if it is still needed."""
        code = await _end(child.process)
        self._children.receive_rest(child)
        if child.kind == "engine":
            self._killed.discard(child.device)
            if code == -signal.SIGKILL and not child.hung:
                self._killed.add(child.device)
        self._administration.remove(child.number)
        self._loop.remove_reader(child.process.channel)
        child.process.channel.close()
        del self._children.by_number[child.number]
        from convoy.service import metric_files  # noqa: PLC0415  see above

        metric_files.forget_process(child.process.pid, self._directory)
        if child.retiring and child.kind == "frontend":
            if code:
                log.warning("%s, which was replaced, ended with exit code %d", child.name, code)
            return  # its successor serves already
        if not self._needed(child.kind):
            return
        if code == os.EX_CONFIG and not self._children.have_served:
            self._unusable = True  # the process has said why: the next one would say the same
            self._stop()
            return
        self._tell_readiness()
        self._children.log_readiness()
        decoding = child.process.pulse.decoding
        if self._quarantine.decoding(decoding, code, time.monotonic()):
            log.error("it was decoding %d pictures: they are decoded apart from now on", len(decoding))
            self._tell_front_ends(self._quarantine.pictures(time.monotonic()))
        served = child.process.pulse.runs or child.status.listening or time.monotonic() - child.started > _STEADY
        place = (child.kind, child.device)
        failed = self._failed_starts[place] = 0 if served else self._failed_starts[place] + 1
        delay = restart_delay(failed)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        which = child.name
        if child.kind == "engine" and len(self._devices) > 1:
            which += f" of device {child.device}"
        if not child.retiring:
            log.error("%s ended with %s; restarting in %g s", which, how, delay)
        if child.loading is not None:
            # An input of another version may have ended it, too: only a version that serves has batches in sessions.
            elsewhere = child.device in self._killed or child.process.pulse.running
            self._children.deaths.add(child.loading, elsewhere=elsewhere)
            log.error("it was loading model %s version %d", child.loading.model, child.loading.version)
        if not child.retiring:
            self._restarts[child.kind, child.device] += 1
            self._note_restarts()
        await self._replace(child, delay)

    async def _replace(self, child: Child, delay: float) -> None:
        settled = False
        while not settled:
            if child.kind == "frontend" and delay > _PATIENCE and not self._children.of("frontend"):
                self._sockets.refuse()
            await asyncio.sleep(delay)
            settled = await self._start_if_needed(child.kind, child.device)
            delay = _RETRY

    def _note_restarts(self) -> None:
        by_kind: Counter[str] = Counter()
        for (kind, _), count in self._restarts.items():
            by_kind[kind] += count
        from convoy.service import metric_files  # noqa: PLC0415  see _forget_ended

        metric_files.note_restarts(self._directory, by_kind)

    def _receive(self, child: Child, message: messages.Message, descriptors: list[int]) -> None:
        match message:
            case messages.Ask() | messages.Applied():
                self._administration.receive(child.number, message, descriptors)
            case messages.Pictures():
                self._quarantine.add_guilty(message)
                self._tell_front_ends(message, child)
            case messages.Deadly():
                self._quarantine.add_deadly(message)
                self._tell_front_ends(message, child)
                if self._offences.add(message.model, message.version, message.digest, time.monotonic()):
                    self._withdraw(message.model, message.version)
            case _:
                self._children.receive(child, message)
                self._tell_readiness()
                if isinstance(message, messages.Status):
                    self._children.log_readiness()  # told before logged: whoever reads "ready" finds it at /readyz
                if child.serves:
                    self._weigh_all()  # what they need to serve, before callers come

    async def _keep_telling(self) -> None:
        while True:
            self._tell_readiness()
            await asyncio.sleep(_TELL_SECONDS)

    def _tell_readiness(self) -> None:
        """Tells the front ends whether the server is ready. While one of them listens, it answers on the HTTP port."""
        if self._config.server.http_api:
            front_ends = self._children.of("frontend")
            self._pause_http(any(child.status.listening for child in front_ends))
            self._tell_front_ends(messages.Readiness(*self._children.ready()))

    def _withdraw(self, model: str, version: int) -> None:
        log.error("model %s version %d ends engines: it stops serving", model, version)
        for engine in self._children.of("engine"):
            with suppress(OSError):  # it has died: its successor receives it at its start
                messages.send(engine.process.channel, messages.Withdraw(model, version))

    def _tell_front_ends(self, message: messages.Message, but: Child | None = None) -> None:
        for child in self._children.of("frontend"):
            if child is not but:
                with suppress(OSError):  # it has died
                    messages.send(child.process.channel, message)

    async def _look(self) -> None:
        """Kills processes that hang."""
        limit = self._config.server.heartbeat_seconds
        between = seconds_between_beats(limit)
        last = time.monotonic()
        while limit:
            await asyncio.sleep(between)
            now = time.monotonic()
            # If this loop was late, so were those of the others: the machine may have been paused.
            seconds, last = min(now - last, 2 * between), now
            for child in list(self._children.by_number.values()):
                self._look_at(child, seconds)

    async def _weigh(self) -> None:
        """Replaces processes that have too much memory, one at a time."""
        while True:
            await asyncio.sleep(_WEIGH_SECONDS)
            self._weigh_all()

    def _weigh_all(self) -> None:
        for child in list(self._children.by_number.values()):
            busy = self._recycling is not None and not self._recycling.done()
            if child.retiring or busy or self._children.draining:
                continue
            with suppress(OSError):  # it has ended
                own = machine.own_bytes(child.process.pid)
                if child.weight.exceeds(own, time.monotonic(), serving=child.serves):
                    self._recycling = self._loop.create_task(self._recycle(child, own))

    async def _recycle(self, child: Child, own: int) -> None:
        log.warning("%s has %d MiB of memory: it is replaced", child.name, own // MIB)
        if child.kind == "engine":
            # As after a death from outside: requests wait for the next engine, and none of them is to blame. A second
            # engine beside it could need more memory, or more of a device's, than there is.
            child.retiring = True
            self._recycled[child.kind, child.device] += 1
            child.process.kill()
            return
        async with self._starts:
            if self._children.draining:
                return
            administers, child.administers = child.administers, False  # the successor does
            try:
                successor = await self._start("frontend")
                successor.succeeds = True
            except OSError as error:
                child.administers = administers
                log.error("frontend cannot be started: %s", error.strerror)
                return
        until = time.monotonic() + _SUCCESSOR_SECONDS
        # The successor may die, and another one be started in its place. If none gets ready, the process goes all the
        # same: it has too much memory.
        while not any(each.status.ready for each in self._children.of("frontend") if each.number >= successor.number):
            if time.monotonic() > until or child.process.returncode is not None:
                break
            await asyncio.sleep(_POLL_SECONDS)
        child.retiring = True
        self._recycled[child.kind, child.device] += 1
        with suppress(OSError):  # it has died
            messages.send(child.process.channel, messages.Retire())
        await self._wait_for([child], self._config.server.grace_seconds + _LAST_GRACE)

    def _look_at(self, child: Child, seconds: float) -> None:
        beats, loading = child.process.pulse.beats, child.loading is not None
        if beats != child.silence.beats:
            reading = Reading(beats, loading, False, False, 0.0)
        else:
            reading = read(child.process.pid, beats, loading=loading)
        if child.silence.observe(reading, seconds) and child.process.returncode is None and not child.hung:
            child.hung = True
            log.error("%s hangs: silent for %.1f s; it is killed", child.name, child.silence.seconds)
            if child.kind == "frontend" or len(self._devices) == 1:  # otherwise the server stays ready
                self._children.trouble = f"{child.kind} hung and was killed"
            child.process.kill()

    def _needed(self, kind: Kind) -> bool:
        # Front ends that drain have requests that an engine must answer.
        return not (self._ending if kind == "engine" else self._children.draining)

    async def _start_if_needed(self, kind: Kind, device: int) -> bool:
        """True if it was started or is no longer needed; False if it could not be started now."""
        async with self._starts:
            try:
                if self._needed(kind):
                    await self._start(kind, device)
            except OSError as error:  # out of memory or processes: possibly temporary
                log.error("%s cannot be started: %s", kind, error.strerror)
                return False
        return True

    async def _drain(self) -> int:
        """Let the front ends answer what they accepted, then end the engines. Returns 0 if everything was answered."""
        self._tell_readiness()
        log.info("draining")
        server = self._config.server
        async with self._starts:
            front_ends = self._children.of("frontend")
        for child in front_ends:
            with suppress(OSError):  # one that does not listen is killed when its time is up
                messages.send(child.process.channel, messages.Drain())
        complete = await self._wait_for(front_ends, server.lame_duck_seconds + server.grace_seconds + _LAST_GRACE)
        self._sockets.refuse()  # who came after a front end that died
        async with self._starts:
            self._ending = True
            engines = self._children.of("engine")
        for child in engines:
            child.process.channel.shutdown(socket.SHUT_RDWR)
        await self._wait_for(engines, _LAST_GRACE)  # nobody waits for what they have left
        log.info("ended")
        return 0 if complete else 1

    async def _wait_for(self, children: list[Child], seconds: float) -> bool:
        """Wait for processes to end and kill late ones; returns whether all ended by themselves, with exit code 0."""
        if not children:
            return True
        _, late = await asyncio.wait(
            [self._loop.create_task(_end(child.process)) for child in children], timeout=seconds
        )
        for child in children:
            if child.process.returncode is None:
                log.error("%s %d did not end in time: killed", child.kind, child.process.pid)
                child.process.kill()
                await _end(child.process)
        return not late and all(child.process.returncode == 0 for child in children)


async def _end(process: Process) -> int:
    """Wait for a process; returns its exit code, or the negative number of the signal that killed it."""
    loop = asyncio.get_running_loop()
    while (code := process.returncode) is None:
        ended = asyncio.Event()
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:  # out of descriptors
            await asyncio.sleep(POLL_SECONDS)
            continue
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return code


def _check_address_space(config: Config) -> None:
    """Raises BadConfig if an engine, which maps the slot memory of every front end, cannot start."""
    front_ends = config.server.front_ends(machine.cores())
    least = front_ends * config.limits.slot_bytes + _ENGINE_BYTES
    if machine.address_space() < least:
        raise BadConfig(
            f"a process may map {machine.address_space()} bytes, want at least {least}, with limits.slot_bytes of all "
            "front ends: lower that setting, or raise the limit, such as by 'ulimit -v unlimited'"
        )


def serve(config: Config, source: Source) -> int:
    """Serve models until SIGTERM or SIGINT; returns the exit code.

    Raises BadConfig if the repository, the transport, a certificate or a port cannot be used.
    """
    source.check()
    doors = check(config)
    sockets = Sockets(config.server, config.admin)
    # Not resolved: a symbolic link may be switched while the server runs.
    source = source.absolute()

    async def run(store: Store) -> int:
        return await Supervisor(config, source, sockets, processes.current(), doors, store).serve()

    with Store(config.repository.cache, Path(processes.current().directory)) as store:
        return asyncio.run(run(store))


def check(config: Config) -> Doors:
    """Raises BadConfig if the transport, a certificate or the callers' file cannot be used, as far as that is known
    without a port."""
    if config.server.transport == "nghttp2" and not machine.has_library(machine.HTTP2_LIBRARY):
        raise BadConfig(
            f"server.transport is 'nghttp2', but {machine.HTTP2_LIBRARY} is not installed (in Debian libnghttp2-14): "
            "install it, or set it to 'auto' or 'grpcio'"
        )
    if config.tracing.enabled and not machine.has_module("opentelemetry.exporter.otlp.proto.grpc"):
        raise BadConfig("tracing.enabled wants OpenTelemetry, which is not installed: pip install 'convoy[tracing]'")
    _check_address_space(config)
    return Doors(config)
