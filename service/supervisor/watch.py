"""Starts, watches, restarts and drains a server's processes.

Its imports delay all of them, so it imports little; the HTTP endpoints are imported once the processes have started.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from convoy.service import access, machine, tls
from convoy.service.config import Config, ServerConfig
from convoy.service.errors import BadConfig
from convoy.service.followed import POLL_SECONDS
from convoy.service.ipc import messages
from convoy.service.ipc.pulse import seconds_between_beats
from convoy.service.supervisor import processes
from convoy.service.supervisor.health import Offences, Reading, Silence, read, restart_delay
from convoy.service.supervisor.processes import Kind, Process, Processes, channel_pair
from convoy.service.supervisor.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from convoy.service.supervisor import endpoints

log = logging.getLogger(__name__)

_RETRY = 5.0  # seconds until another attempt, if the system lacks resources for a start
_STEADY = 30.0  # seconds after which a process counts as stable
_LAST_GRACE = 3.0  # seconds beyond the front ends' own grace, after which they are killed
_MOST_SUSPECTS = 64  # sent to a new engine: as many as one message can carry
# Reasons that do not end by waiting: logged even if the server was not ready before.
_FAULTS = ("no model serves", "the model repository")
_STARTING = messages.Status(listening=False, ready=False, reason="starting")


@dataclass(slots=True)
class Child:
    """A process of the server. One writer: the supervisor's loop."""

    kind: Kind
    device: int  # the engine's device; 0 for a front end
    number: int  # never reused
    process: Process
    started: float = field(default_factory=time.monotonic)
    status: messages.Status = _STARTING
    loading: messages.Suspect | None = None  # the version that an engine is loading
    silence: Silence = field(default_factory=lambda: Silence(0.0))
    hung: bool = False  # it was killed because it was silent

    @property
    def name(self) -> str:
        """How it is called in the log."""
        return f"{self.kind} {self.process.pid}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The listening addresses of the server, once the ports are known."""

    grpc: str
    http: str
    metrics: str


class Children:
    """The running processes, and whether they serve. One writer: the supervisor's loop; the HTTP threads only read."""

    def __init__(self, front_ends: int, grpc_address: str) -> None:
        self.by_number: dict[int, Child] = {}
        self.draining = False  # a front end that ends is not restarted
        self.trouble = ""  # why the server is not ready, once it is not: a process that hung
        self._front_ends = front_ends
        self._grpc_address = grpc_address
        self._was_ready = False
        self._shortage = ""  # the last warning while ready

    def of(self, kind: Kind) -> list[Child]:
        """Returns the processes of one kind."""
        return [child for child in list(self.by_number.values()) if child.kind == kind]

    def ready(self) -> tuple[bool, str]:
        """Returns whether every front end accepts requests; and the reason if not, or if an engine is missing."""
        if self.draining:
            return False, "draining"
        front_ends = self.of("frontend")
        missing = "front ends are starting" if len(front_ends) < self._front_ends else ""
        reason = missing or next((child.status.reason for child in front_ends if not child.status.ready), "")
        if reason:
            return False, "; ".join(filter(None, (self.trouble, reason)))
        return True, next((child.status.reason for child in front_ends if child.status.reason), "")

    def receive(self, child: Child, message: messages.Message) -> None:
        """Records what a process reports."""
        if isinstance(message, messages.Status):
            child.status = message
            self.log_readiness()
        elif isinstance(message, messages.Loading):
            child.loading = message.what

    def receive_rest(self, child: Child) -> None:
        """Records what an ended process had sent: the last message may name the version that ended it."""
        with suppress(ConnectionError):
            while received := messages.receive(child.process.channel):
                self.receive(child, received[0])

    def log_readiness(self) -> None:
        """Logs a change of readiness."""
        ready, reason = self.ready()
        if ready and not self._was_ready:
            self.trouble = ""
            log.info("ready", extra={"fields": {"grpc": self._grpc_address}})
        elif self._was_ready and not ready:
            log.warning("not ready: %s", reason)
        elif not ready and reason.startswith(_FAULTS):
            log.error("not ready: %s", reason)
        if ready and reason != self._shortage:
            log.warning("%s", reason or "engines serve on all devices again")
        self._was_ready = ready
        self._shortage = reason if ready else self._shortage


class Supervisor:
    """All processes of one server. One writer of all its state: its loop; the HTTP threads only read."""

    def __init__(
        self,
        config: Config,
        repository: Path,
        sockets: "Sockets",
        processes: Processes,
        doors: "Doors",
        store: Store,
    ) -> None:
        self._config = config
        self._doors = doors
        self._devices = config.engine.device_numbers(machine.cuda_devices)
        self._front_ends = config.server.front_ends(machine.cores())
        self._repository = repository
        self._addresses = sockets.addresses
        self._processes = processes
        self._store = store
        self._directory = Path(processes.directory.name)
        self._sockets = sockets
        self._restarts: Counter[tuple[str, int]] = Counter(
            {("frontend", 0): 0, **{("engine", device): 0 for device in self._devices}}
        )
        self._children = Children(self._front_ends, sockets.addresses.grpc)
        self._numbers = 0
        self._failed_starts: Counter[tuple[Kind, int]] = Counter()
        self._killed: set[int] = set()  # devices whose last engine was killed by another process
        self._offences = Offences()
        self._suspects: Counter[messages.Suspect] = Counter()  # engine deaths by the version that was loading
        self._ending = False  # neither is an engine: the front ends have ended
        self._starts = asyncio.Lock()  # locked for one start at a time, which then links all existing processes
        self._loop = asyncio.get_running_loop()
        self._watchers: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Run until a signal; returns the exit code."""
        stopping = asyncio.Event()
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            signals.append(signal.SIGHUP)  # the terminal has closed
        for number in signals:
            self._loop.add_signal_handler(number, self._on_signal, stopping)
        addresses = self._addresses
        processes.announce(self._directory, addresses.grpc)
        fields = {"grpc": addresses.grpc, "http": addresses.http, "metrics": addresses.metrics}
        log.info("listening", extra={"fields": fields})
        async with self._starts:
            for device in self._devices:
                await self._start("engine", device)
            for _ in range(self._front_ends):
                await self._start("frontend")
        await asyncio.to_thread(self._serve_http)
        looking = self._loop.create_task(self._look())
        following = self._loop.create_task(self._doors.follow())
        await stopping.wait()
        code = await self._drain()
        looking.cancel()
        following.cancel()
        return code

    def _serve_http(self) -> None:
        from convoy.service.supervisor import endpoints  # noqa: PLC0415  see above

        sockets = self._sockets
        endpoints.serve(
            sockets.http,
            sockets.metrics,
            self._children.ready,
            self._directory,
            self._restarts,
            self._doors.of_ports(),
        )

    def _on_signal(self, stopping: asyncio.Event) -> None:
        if stopping.is_set():
            log.warning("second signal: ending at once")
            for child in self._children.by_number.values():
                child.process.kill()
            os._exit(1)
        self._children.draining = True
        stopping.set()

    async def _start(self, kind: Kind, device: int = 0) -> None:
        self._numbers += 1
        process = self._processes.start(kind)
        child = self._children.by_number[self._numbers] = Child(
            kind, device, self._numbers, process, silence=Silence(self._config.server.heartbeat_seconds)
        )
        start = messages.Start(
            config=self._config if kind == "frontend" else self._config_of(device),
            devices=self._devices,
            repository=str(self._repository),
            grpc_address=self._addresses.grpc,
            metrics_directory=str(self._directory),
            store=str(self._store.folder),
            cache=str(self._store.cache),
            suspects=tuple(self._suspects.most_common(_MOST_SUSPECTS)) if kind == "engine" else (),
            withdrawn=self._offences.withdrawn(time.monotonic()) if kind == "engine" else (),
        )
        with suppress(ConnectionError):  # it has died already: _watch handles that
            messages.send(process.channel, start)
        process.channel.setblocking(False)
        messages.listen(process.channel, lambda message, _: self._receive(child, message), lambda: None)
        for other in list(self._children.by_number.values()):
            self._link(child, other)
        watcher = self._loop.create_task(self._watch(child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

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
            messages.send(engine.process.channel, link, engine_end.fileno())
            messages.send(front_end.process.channel, link, front_end_end.fileno())

    async def _watch(self, child: Child) -> None:
        """Wait for a process to end, then start another if it is still needed."""
        code = await _end(child.process)
        self._children.receive_rest(child)
        if child.kind == "engine":
            self._killed.discard(child.device)
            if code == -signal.SIGKILL and not child.hung:
                self._killed.add(child.device)
        self._loop.remove_reader(child.process.channel)
        child.process.channel.close()
        del self._children.by_number[child.number]
        from convoy.service import metric_files  # noqa: PLC0415  see above

        metric_files.forget_process(child.process.pid, self._directory)
        if not self._needed(child.kind):
            return
        self._children.log_readiness()
        served = child.process.pulse.runs or child.status.listening or time.monotonic() - child.started > _STEADY
        place = (child.kind, child.device)
        failed = self._failed_starts[place] = 0 if served else self._failed_starts[place] + 1
        delay = restart_delay(failed)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        which = child.name
        if child.kind == "engine" and len(self._devices) > 1:
            which += f" of device {child.device}"
        log.error("%s ended with %s; restarting in %g s", which, how, delay)
        if child.loading is not None:
            self._suspects[child.loading] += 1
            log.error("it was loading model %s version %d", child.loading.model, child.loading.version)
        self._restarts[child.kind, child.device] += 1
        settled = False
        while not settled:
            await asyncio.sleep(delay)
            settled = await self._start_if_needed(child.kind, child.device)
            delay = _RETRY

    def _receive(self, child: Child, message: messages.Message) -> None:
        if not isinstance(message, messages.Deadly):
            self._children.receive(child, message)
            return
        for other in self._children.of("frontend"):
            if other is not child:
                with suppress(OSError):  # it has died
                    messages.send(other.process.channel, message)
        if self._offences.add(message.model, message.version, message.digest, time.monotonic()):
            log.error("model %s version %d ends engines: it stops serving", message.model, message.version)
            for engine in self._children.of("engine"):
                with suppress(OSError):  # it has died: its successor receives it at its start
                    messages.send(engine.process.channel, messages.Withdraw(message.model, message.version))

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
        log.info("draining")
        server = self._config.server
        async with self._starts:
            front_ends = self._children.of("frontend")
        for child in front_ends:
            with suppress(OSError):  # one that does not listen is killed when its time is up
                messages.send(child.process.channel, messages.Drain())
        complete = await self._wait_for(front_ends, server.lame_duck_seconds + server.grace_seconds + _LAST_GRACE)
        async with self._starts:
            self._ending = True
            engines = self._children.of("engine")
        for child in engines:
            child.process.channel.shutdown(socket.SHUT_RDWR)
        complete &= await self._wait_for(engines, _LAST_GRACE)
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
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return code


class Doors:
    """The files that say who may use the HTTP ports. One writer: the supervisor's loop; the HTTP threads only read."""

    def __init__(self, config: Config) -> None:
        """Raises BadConfig."""
        self._public = config.access.public
        self._callers = access.follow(config.access)
        self._tls = tls.follow(config.tls, "http/1.1")
        if self._callers is not None and not config.tls.certificate:
            log.warning("tokens of callers are not encrypted on their way: set tls.certificate and tls.key")

    def of_ports(self) -> "Mapping[endpoints.Area, endpoints.Door]":
        """Returns the doors of the two ports."""
        from convoy.service.supervisor.endpoints import Door  # noqa: PLC0415  see above

        return {
            "probes": Door(self._callers, self._tls, "probes" in self._public),
            "metrics": Door(self._callers, self._tls, "metrics" in self._public, "metrics"),
        }

    async def follow(self) -> None:
        """Reads files again that have changed."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._callers is not None:
                access.poll(self._callers)
            if self._tls is not None:
                self._tls.poll()


class Sockets:
    """The bound ports of a server. The gRPC port is only reserved: the front ends listen on it."""

    def __init__(self, config: ServerConfig) -> None:
        # The reserved port last: nothing listens on it yet, so another of the three could bind it again.
        self.http = _bound(config.host, config.http_port, "server.http_port")
        self.metrics = _bound(config.host, config.metrics_port, "server.metrics_port")
        self.reserved = _bound(config.host, config.grpc_port, "server.grpc_port", shared=True)
        self.addresses = Addresses(*(_address(bound) for bound in (self.reserved, self.http, self.metrics)))


def _bound(host: str, port: int, key: str, *, shared: bool = False) -> socket.socket:
    """A bound socket, which listens unless it is `shared`. Raises BadConfig if the host or port is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise _bad_host(host, error) from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        if shared:
            # Bound without SO_REUSEPORT first: with it, two servers would silently share the port.
            address = bound.getsockname()
            bound.close()
            bound = socket.socket(family, kind, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        else:
            bound.listen()  # now: with SO_REUSEADDR, a port that is only bound could be bound again
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _bad_host(host, error) from None
        raise BadConfig(
            f"port {port} on {host} cannot be used ({error.strerror}): stop the process that uses it, or set {key}"
        ) from None
    return bound


def _bad_host(host: str, error: OSError) -> BadConfig:
    hint = "want an address or a name of this machine such as 127.0.0.1, or 0.0.0.0 for all of its addresses"
    return BadConfig(f"server.host is {host!r} ({error.strerror}), {hint}")


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(config: Config, repository: Path) -> int:
    """Serve a model repository until SIGTERM, SIGINT or SIGHUP; returns the exit code.

    Raises BadConfig if the repository, the transport, a certificate or a port cannot be used.
    """
    if not repository.is_dir():
        raise BadConfig(f"model repository {str(repository)!r} is not a directory: create it, or name another")
    if config.server.transport == "nghttp2" and not machine.has_library(machine.HTTP2_LIBRARY):
        raise BadConfig(
            f"server.transport is 'nghttp2', but {machine.HTTP2_LIBRARY} is not installed (in Debian libnghttp2-14): "
            "install it, or set it to 'auto' or 'grpcio'"
        )
    doors = Doors(config)
    sockets = Sockets(config.server)
    root = repository.absolute()  # not resolved: a symbolic link may be switched while the server runs

    async def run(store: Store) -> int:
        return await Supervisor(config, root, sockets, processes.current(), doors, store).serve()

    with processes.current().directory as directory, Store(config.repository.cache, Path(directory)) as store:
        return asyncio.run(run(store))
