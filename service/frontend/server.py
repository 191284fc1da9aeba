"""The front end process: connects the servicers, the engines' channels and the health service, and drains them."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import uvloop

from convoy.service import access, descriptors, log, machine, metrics, tls
from convoy.service.errors import BadConfig
from convoy.service.followed import POLL_SECONDS, wait
from convoy.service.frontend import exporting, memory
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.changes import Changes, Orders
from convoy.service.frontend.coalescing import Coalescer
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.engine_client import EngineClient
from convoy.service.frontend.health import HEALTH, Health
from convoy.service.frontend.http_port import HttpPort
from convoy.service.frontend.landing import Landings
from convoy.service.frontend.management import EXTENSIONS as MANAGEMENT_EXTENSIONS
from convoy.service.frontend.management import SHARED_MEMORY, Management, ManagementElsewhere, NoManagement
from convoy.service.frontend.methods import joined, service_of
from convoy.service.frontend.oip import InferenceService
from convoy.service.frontend.reflection import Reflection
from convoy.service.frontend.regions import Regions
from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.suspects import Guilty
from convoy.service.frontend.threads import Threads
from convoy.service.frontend.tracing import TRACES
from convoy.service.frontend.transport.choice import Transport, choose
from convoy.service.frontend.transport.interface import Limits, Service
from convoy.service.frontend.vision import Vision
from convoy.service.ipc import messages
from convoy.service.ipc.channel import Request
from convoy.service.ipc.pulse import Pulse, beat
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2
from convoy.service.repository import Table, Version

logger = logging.getLogger(__name__)

_VISION = vision_pb2.DESCRIPTOR.services_by_name["Vision"]
_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_SERVICES = (_VISION, _INFERENCE)
_PATHS = {each.name: f"{service.full_name}/{each.name}" for service in _SERVICES for each in service.methods}
_MAX_REASON = 4096  # characters of the reason why the server is not ready
_RETRY = 1.0  # seconds until the next attempt to tell a supervisor that does not read
_ADMIN_CONNECTIONS = 8  # to the administration port
_HEAVY_SHARE = 4 << 30  # bytes of memory for each picture of the largest: an eighth is what it takes to decode
_FAREWELL_SECONDS = 0.5  # in which callers leave a server that drains
_ARRIVAL_SECONDS = 5.0  # for requests that they have begun to send by then
_NOTICE_SECONDS = 2.0  # in which callers leave a front end that retires
_CLOSED_SECONDS = 10.0  # for which a process that joins others waits for models before it says that there are none
_FLUSH_SECONDS = 2.0  # of the grace, for the spans of the last requests to be sent
_LAST_WORDS = 0.5  # seconds for gRPC to send the last answers, and to end the streams of health watchers


class FrontEnd:
    """A transport for each port, and the objects that serve them. One writer of all state: the loop."""

    def __init__(self, start: messages.Start, supervisor: socket.socket, pulse: Pulse, given: messages.Given) -> None:
        self._config = start.config
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        levels = metrics.Levels(self._write_levels)
        self._client = self._engine_client(start, levels)
        self._catalogue = Catalogue(self._release)
        limits = start.config.limits
        front_ends = start.config.server.front_ends(machine.cores())
        self._gate = Gate(
            limits.max_requests, limits.bytes_in_flight(machine.memory_bytes(), front_ends), levels.changed
        )
        self._health = Health()
        self._health_services: set[str] = set()
        self._listening = self._draining = self._may_open = False
        self._opened = asyncio.Event()  # to callers of gRPC
        self._report: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._reports = asyncio.Event()
        self._reload = asyncio.Event()
        self._status = messages.Status(False, False, "starting")
        threads = Threads(
            limits.threads(machine.cores()), "decode", machine.memory_bytes() // (front_ends * _HEAVY_SHARE)
        )
        self._decoder = Decoder(pulse, self._report_picture_soon)
        self._learn_all(start)
        self._exporting = exporting.begin(start.config.tracing, _PATHS)
        vision = Vision(self._catalogue, self._client, start.config.limits, threads, self._decoder)
        self._tls = tls.follow(start.config.tls, "h2")
        self._callers = access.follow(start.config.access)
        transport = choose(start.config.server.transport)
        metrics.TRANSPORT.labels(transport.name, transport.version).set(1)
        regions = Regions(start.regions, given.regions) if start.config.admin.shared_memory else None
        self.changes = Changes(self._tell, self._catalogue, TRACES, regions)
        self.orders = Orders(self._tell)
        coalescer = Coalescer(self._catalogue, self._client)
        self._landings = Landings(self._client.arena, levels.changed)
        serve = partial(
            service_of,
            gate=self._gate,
            max_stream_requests=limits.max_stream_requests,
            coalescer=coalescer,
            landings=self._landings,
        )

        def inference(management: object, extensions: Sequence[str] = ()) -> Service:
            servicer = InferenceService(
                catalogue=self._catalogue,
                client=self._client,
                limits=start.config.limits,
                threads=threads,
                metrics_directory=Path(start.metrics_directory),
                ready=lambda: self._status.ready,
                decoder=self._decoder,
                extensions=(*extensions, transport.extension),
                regions=regions,
            )
            return joined(serve(_INFERENCE, servicer), serve(_INFERENCE, management))

        def listener(address: str, services: Sequence[Service], *, administers: bool) -> Transport:
            doors = Doors(start.config.access, self._callers, start.config.quotas, administers=administers)
            described = [*([] if administers else [_VISION]), _INFERENCE, HEALTH]
            every = [*services, self._health.service, *Reflection(described).services]
            limits = _limits(start, front_ends, administers=administers)
            kept = None if administers else given.port
            return transport.make(address, every, limits, self._tls, doors if doors.needed else None, kept)

        services = [
            serve(_VISION, vision),
            inference(ManagementElsewhere() if start.config.admin.enabled else NoManagement()),
        ]
        self._transports = [listener(start.grpc_address, services, administers=False)]
        if start.admin_address:
            management = Management(self._catalogue, self.orders, TRACES, regions)
            extensions = (*MANAGEMENT_EXTENSIONS, *((SHARED_MEMORY,) if regions is not None else ()))
            of_admin = [inference(management, extensions)]
            self._transports.append(listener(start.admin_address, of_admin, administers=True))
        self._http = None if given.http is None else self._http_port(start, given.http, services, threads)

    def _http_port(self, start: messages.Start, port: int, services: Sequence[Service], threads: Threads) -> HttpPort:
        limits = _limits(start, start.config.server.front_ends(machine.cores()), administers=False)
        limits = limits._replace(connections=descriptors.of_http_api(len(start.devices)))
        draining = lambda: self._draining  # noqa: E731
        return HttpPort(start, port, services, self._catalogue, threads, self._decoder, self._callers, limits, draining)

    def _engine_client(self, start: messages.Start, levels: metrics.Levels) -> EngineClient:
        slot_bytes = start.config.limits.slot_bytes
        try:
            return EngineClient(
                slot_bytes, self._update, self._report_soon, levels.changed, start.devices, self._report_deadly
            )
        except OSError as error:
            raise BadConfig(
                f"limits.slot_bytes is {slot_bytes}, which cannot be mapped ({error.strerror}): "
                "want less, or a higher limit of memory"
            ) from None

    def _learn_all(self, start: messages.Start) -> None:
        # What others have found out, or have been told, before this process was there.
        self._decoder.learn(start.pictures)
        for deadly in start.deadly:
            self.refuse(deadly)
        for setting in start.tracing:
            TRACES.set(setting)

    async def listen(self, *, joins: bool) -> None:
        """Starts accepting requests; they are UNAVAILABLE until the engine has loaded their model.

        A process that joins a server, in another one's place, waits for the models first: callers are served by the
        other front ends, or wait at the port until somebody accepts them, and neither is as bad as a refusal.
        """
        self._set_health(False)  # before anybody can ask
        if not self._config.server.listen_when_loaded:
            if joins:
                self._loop.call_later(_CLOSED_SECONDS, self._wait_no_longer)
            else:
                await self._open()
        self._report = self._loop.create_task(self._keep_reporting())
        self._following = self._loop.create_task(self._follow())
        self._report_soon()

    async def listen_to_http(self, *, joins: bool) -> None:
        """Starts accepting connections on the HTTP port, where this server has one: see listen."""
        if self._http is not None:
            await self._http.open(self._opened if joins else None)
            self._report_soon()
        # Once everything is imported, which need not be looked at again.
        self._returning = self._loop.create_task(memory.keep_returning(lambda: self._gate.bytes))

    def attach(self, connection: socket.socket, device: int, *, from_outside: bool) -> None:
        """Connects a new engine's channel. `from_outside`: see Link."""
        self._client.attach(connection, device, from_outside=from_outside)

    async def drain(self) -> bool:
        """Reports not ready at once, accepts requests a little longer, and answers them. Returns whether all were."""
        self._draining = True
        self._report_soon()
        server = self._config.server
        # Clients and load balancers notice with a delay. Until then their requests are answered.
        await asyncio.sleep(server.lame_duck_seconds)
        # Those that ask for nobody's health notice now.
        until = self._loop.time() + server.grace_seconds
        notice, patience = (min(seconds, server.grace_seconds / 2) for seconds in (_FAREWELL_SECONDS, _ARRIVAL_SECONDS))
        await self._transports[0].leave(notice, patience)  # the administration port stays
        self._gate.close()
        ends = self._loop.time() + server.grace_seconds
        try:
            await asyncio.wait_for(self._gate.wait_empty(), until - self._loop.time())
        except TimeoutError:
            logger.error("requests were still unanswered after %g s of grace", server.grace_seconds)
            await self._stop(0)
            await self._flush(_LAST_WORDS)
            return False
        left = ends - self._loop.time()
        await asyncio.gather(self._stop(_LAST_WORDS), self._flush(max(_LAST_WORDS, min(left, _FLUSH_SECONDS))))
        return True

    async def _flush(self, seconds: float) -> None:
        """Sends the spans that wait, where there are any."""
        if self._exporting is not None:
            await self._exporting.flush(seconds)

    async def _stop(self, seconds: float) -> None:
        stopping = [transport.stop(seconds) for transport in self._transports]
        if self._http is not None:
            stopping.append(self._http.stop(seconds))
        self._listening = False
        self._report_soon()
        await asyncio.gather(*stopping)

    async def retire(self) -> None:
        """Sends callers to another front end, and answers what has arrived until then. Nothing is refused:
        callers leave at the GOAWAY, and requests that they have sent by then are served."""
        grace = self._config.server.grace_seconds
        # Streams end with the gate. By then callers know that they must call another one.
        self._loop.call_later(min(_NOTICE_SECONDS, grace / 2), self._gate.close)
        await self._stop(grace)
        await self._flush(_LAST_WORDS)

    def _update(self, table: Table) -> None:
        self._catalogue.update(table)
        self._report_soon()
        self.changes.table_changed()

    def _tell(self, message: messages.Message, given: Sequence[int]) -> None:
        messages.send(self._supervisor, message, given)

    def _release(self, model: str, version: int) -> None:
        """Releases a version that no longer serves and that no request refers to any more."""
        self._client.forget(model, version)
        loop = asyncio.get_running_loop()
        loop.call_later(self._config.server.keep_metrics_seconds, self._forget, model, version)

    def _forget(self, model: str, version: int) -> None:
        rows = self._catalogue.table.versions
        if not any((row.model, row.version, row.state) == (model, version, "READY") for row in rows):
            metrics.forget_version(model, version)

    def _write_levels(self) -> None:
        metrics.IN_FLIGHT.set(self._gate.requests)
        metrics.IN_FLIGHT_BYTES.set(self._gate.bytes)
        # What has landed is a part of a slot, or waits to be copied into one.
        metrics.SLOTS.set(self._client.arena.blocks - self._landings.blocks)
        metrics.SLOT_BYTES.set(self._client.arena.used_bytes)

    def refuse(self, deadly: messages.Deadly) -> None:
        """Refuses an input that has ended engines on requests of another front end."""
        self._client.refuse(Guilty(deadly.digest, deadly.sample, deadly.until))

    def learn(self, pictures: messages.Pictures) -> None:
        """Records what is known about pictures that end processes."""
        self._decoder.learn(pictures)

    def _report_picture_soon(self, digest: bytes, until: float) -> None:
        # A decoding thread calls this.
        self._loop.call_soon_threadsafe(self._report_picture, messages.Pictures(guilty=((digest, until),)))

    def _report_picture(self, pictures: messages.Pictures) -> None:
        self.learn(pictures)
        with suppress(OSError):  # the supervisor is stopped or has died
            messages.send(self._supervisor, pictures)

    def _report_deadly(self, request: Request, guilty: Guilty) -> None:
        with suppress(OSError):  # the supervisor is stopped or has died
            messages.send(self._supervisor, messages.Deadly(request.model, request.version, *guilty))

    def hear(self, readiness: messages.Readiness) -> None:
        """Records what the supervisor says of the whole server."""
        if self._http is not None:
            self._http.hear(readiness)

    def reload(self) -> None:
        """Reads certificates and callers again."""
        self._reload.set()

    async def _follow(self) -> None:
        """Reads files again that have changed."""
        renewed = False
        while self._tls is not None or self._callers is not None:
            now = self._reload.is_set()
            self._reload.clear()
            if self._http is not None:
                self._http.poll(now=now)
            if self._tls is not None:
                renewed = self._tls.poll(now=now) or renewed
                if renewed:
                    try:
                        for transport in self._transports:
                            await transport.renew()
                        renewed = False
                    except OSError as error:  # such as too many open files: the next round tries again
                        logger.error("new certificates cannot be used yet: %s", error.strerror)
                metrics.CERTIFICATE_EXPIRY.labels("grpc").set(self._tls.value.expires)
                metrics.RELOAD_FAILED.labels("tls").set(self._tls.failed)
            if self._callers is not None:
                access.poll(self._callers, now=now)
                metrics.RELOAD_FAILED.labels("callers").set(self._callers.failed)
            await wait(self._reload, POLL_SECONDS)

    def _report_soon(self) -> None:
        self._reports.set()

    async def _keep_reporting(self) -> None:
        """Reports every change of status to the supervisor and to the health service's watchers."""
        while True:
            await self._reports.wait()
            self._reports.clear()
            self._may_open |= self._catalogue.table.complete
            if self._may_open and not self._draining and not self._opened.is_set():
                await self._open_or_end()
            status = self._now()
            if status != self._status:
                try:
                    messages.send(self._supervisor, status)
                    self._status = status
                except BlockingIOError:  # the supervisor is stopped and its socket is full
                    self._loop.call_later(_RETRY, self._report_soon)
            self._set_health(status.ready)

    async def _open_or_end(self) -> None:
        try:
            await self._open()
        except OSError as error:  # such as too many open files: the next process may find some
            logger.error("the port cannot be opened: %s", error.strerror)
            raise SystemExit(1) from None

    def _wait_no_longer(self) -> None:
        self._may_open = True
        self._report_soon()

    async def _open(self) -> None:
        self._opened.set()
        for transport in self._transports:
            await transport.start()
        self._listening = True

    def _now(self) -> messages.Status:
        table = self._catalogue.table
        complete = self._http is None or self._http.is_open
        listening = self._listening and complete
        if self._draining:
            reason = "draining"
        elif not self._client.engines.connected:
            reason = "the engine is starting"
        elif not table.complete:
            reason = table.problem or "models are loading"
        elif len(self._client.engines.lost) == len(self._client.engines.by_device):
            reason = "the engine has died, and the next one is loading"
        elif not table.ready:
            faults = [f"{_which(row)}: {row.reason}" for row in table.versions if row.reason]
            reason = "no model serves" + (f": {'; '.join(faults)}" if faults else ": the repository contains no model")
        elif not complete:
            reason = "the HTTP port is about to open"
        else:
            return messages.Status(listening, True, _without(self._client.engines.lost))
        return messages.Status(listening, False, reason[:_MAX_REASON])

    def _set_health(self, ready: bool) -> None:
        """Sets the health of the server (the empty name), each service, and each model: `NAME` and `NAME/VERSION`."""
        serving = {row.model for row in self._catalogue.table.versions if row.state == "READY"}
        serving |= {f"{row.model}/{row.version}" for row in self._catalogue.table.versions if row.state == "READY"}
        known = {row.model for row in self._catalogue.table.versions}
        services = {"", *(service.full_name for service in _SERVICES)}
        for name in services | serving | known | self._health_services:
            self._health.set(name, ready and (name in services or name in serving))
        self._health_services |= serving | known


def _limits(start: messages.Start, front_ends: int, *, administers: bool) -> Limits:
    limits, server = start.config.limits, start.config.server
    others = descriptors.of_front_end(len(start.devices)) - _ADMIN_CONNECTIONS * bool(start.admin_address)
    others -= descriptors.of_http_api(len(start.devices)) if start.http else 0
    return Limits(
        message_bytes=limits.max_message_bytes,
        metadata_bytes=limits.max_metadata_bytes,
        # Above the gate's limit, which refuses with a hint: bounds the memory of unread requests.
        calls=limits.max_requests * 2 + 64,
        min_ping_seconds=server.min_ping_seconds,
        stall_seconds=limits.stall_seconds,
        receiving_bytes=2 * limits.bytes_in_flight(machine.memory_bytes(), front_ends),
        connection_calls=server.max_connection_calls,
        connection_age=server.max_connection_age_seconds,
        connection_grace=server.max_connection_grace_seconds,
        connection_idle=server.max_connection_idle_seconds,
        compression=server.compression,
        connections=_ADMIN_CONNECTIONS if administers else others,
    )


def _which(row: Version) -> str:
    return f"{row.model} version {row.version}" if row.version else row.model


def _without(devices: Sequence[int]) -> str:
    if not devices:
        return ""
    return f"no engine serves on device {' and '.join(map(str, devices))} now: the others do all"


async def _main(supervisor: socket.socket, pulse: Pulse) -> int:
    start, received = messages.receive_start(supervisor)
    log.configure(start.config.server.log_level, "frontend", start.config.server.log_format)
    REQUESTS.set(start.config.server.log_requests, start.config.server.log_requests_per_second)
    beating = asyncio.ensure_future(beat(pulse, start.config.server.heartbeat_seconds))
    try:
        front_end = FrontEnd(start, supervisor, pulse, start.given(received))
    except BadConfig as error:  # found out here first, or a file has become unusable since the server started
        logger.error("%s", error.message)
        return os.EX_CONFIG
    loop = asyncio.get_running_loop()
    # What is computed or freed aside takes turns: a pool of several threads would grow to all of them in time.
    loop.set_default_executor(ThreadPoolExecutor(1, "aside"))
    over: asyncio.Future[bool] = loop.create_future()

    async def drain() -> None:
        complete = await front_end.drain()
        if not over.done():
            over.set_result(complete)

    async def retire() -> None:
        await front_end.retire()
        if not over.done():
            over.set_result(True)

    draining: list[asyncio.Task[None]] = []

    def receive(message: messages.Message, received: list[int]) -> None:
        if isinstance(message, messages.Link):
            connection = socket.socket(fileno=received[0])
            front_end.attach(connection, message.device, from_outside=message.from_outside)
        elif isinstance(message, messages.Apply):
            front_end.changes.make(message.number, message.change, received)
        elif isinstance(message, messages.Outcome):
            front_end.orders.end(message)
        elif isinstance(message, messages.Readiness):
            front_end.hear(message)
        elif isinstance(message, messages.Deadly):
            front_end.refuse(message)
        elif isinstance(message, messages.Reload):
            front_end.reload()
        elif isinstance(message, messages.Pictures):
            front_end.learn(message)
        elif isinstance(message, messages.Drain) and not draining:
            draining.append(loop.create_task(drain()))
        elif isinstance(message, messages.Retire) and not draining:
            draining.append(loop.create_task(retire()))

    def end() -> None:
        if not over.done():
            over.set_result(False)

    await front_end.listen(joins=start.joins)
    # Before HTTP, whose imports take seconds on a busy machine: until engines are attached, every call is refused.
    messages.listen(supervisor, receive, end)
    complete = await _until_over(front_end.listen_to_http(joins=start.joins), over)
    beating.cancel()
    return 0 if complete else 1


async def _until_over(opening: Coroutine[None, None, None], over: asyncio.Future[bool]) -> bool:
    """Opens a port, unless it is over while that waits for models; returns whether everything was answered."""
    task = asyncio.create_task(opening)
    await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)
    if not over.done():
        await task
    return await over


def main() -> None:
    """Runs a front end; the arguments are the descriptors of the channel to the supervisor, and of the pulse."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_main(connection, Pulse(int(sys.argv[2]))))
        # Threads may still decode for cancelled calls. Where the supervisor has died, calls are in progress: the runner
        # would end them as CANCELLED, which no client repeats.
        os._exit(status)


if __name__ == "__main__":
    main()
