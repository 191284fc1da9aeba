"""The front end process: connects the servicers, the engines' channels and the health service, and drains them."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import uvloop

from convoy.service import access, log, machine, metric_files, metrics, tls
from convoy.service.errors import BadConfig
from convoy.service.followed import POLL_SECONDS
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.coalescing import Coalescer
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.engine_client import EngineClient
from convoy.service.frontend.health import HEALTH, Health
from convoy.service.frontend.landing import Landings
from convoy.service.frontend.methods import service_of
from convoy.service.frontend.oip import InferenceService
from convoy.service.frontend.reflection import Reflection
from convoy.service.frontend.suspects import Guilty
from convoy.service.frontend.transport.choice import choose
from convoy.service.frontend.transport.interface import Limits, Transport
from convoy.service.frontend.vision import Vision
from convoy.service.ipc import messages
from convoy.service.ipc.channel import Request
from convoy.service.ipc.pulse import Pulse, beat
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2
from convoy.service.repository import Table

logger = logging.getLogger(__name__)

_VISION = vision_pb2.DESCRIPTOR.services_by_name["Vision"]
_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_SERVICES = (_VISION, _INFERENCE)
_MAX_REASON = 4096  # characters of the reason why the server is not ready
_LAST_WORDS = 0.5  # seconds for gRPC to send the last answers, and to end the streams of health watchers


class FrontEnd:
    """One transport and the objects that serve it. One writer of all state: the loop."""

    def __init__(self, start: messages.Start, supervisor: socket.socket) -> None:
        self._config = start.config
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        levels = metrics.Levels(self._write_levels)
        slot_bytes = start.config.limits.slot_bytes
        self._client = EngineClient(
            slot_bytes, self._update, self._report_soon, levels.changed, start.devices, self._report_deadly
        )
        self._catalogue = Catalogue(self._release)
        limits = start.config.limits
        front_ends = start.config.server.front_ends(machine.cores())
        self._gate = Gate(
            limits.max_requests, limits.bytes_in_flight(machine.memory_bytes(), front_ends), levels.changed
        )
        self._health = Health()
        self._health_services: set[str] = set()
        self._listening = False
        self._draining = False
        self._report: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._reports = asyncio.Event()
        self._status = messages.Status(False, False, "starting")
        threads = ThreadPoolExecutor(start.config.limits.decode_threads or machine.cores(), "decode")
        vision = Vision(self._catalogue, self._client, start.config.limits, threads)
        self._tls = tls.follow(start.config.tls, "h2")
        self._callers = access.follow(start.config.access)
        doors = Doors(start.config.access, self._callers, start.config.quotas)
        transport = choose(start.config.server.transport)
        metrics.TRANSPORT.labels(transport.name, transport.version).set(1)
        inference = InferenceService(
            catalogue=self._catalogue,
            client=self._client,
            limits=start.config.limits,
            threads=threads,
            metrics_directory=Path(start.metrics_directory),
            ready=lambda: self._status.ready,
            transport=transport.extension,
        )
        coalescer = Coalescer(self._catalogue, self._client)
        self._landings = Landings(self._client.arena, levels.changed)
        server = start.config.server
        self._transport: Transport = transport.make(
            start.grpc_address,
            [
                service_of(_VISION, vision, self._gate, limits.max_stream_requests, coalescer, self._landings),
                service_of(_INFERENCE, inference, self._gate, limits.max_stream_requests, coalescer, self._landings),
                self._health.service,
                *Reflection([*_SERVICES, HEALTH]).services,
            ],
            Limits(
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
            ),
            self._tls,
            doors if doors.needed else None,
        )

    async def listen(self) -> None:
        """Starts accepting requests; they are UNAVAILABLE until the engine has loaded their model."""
        await self._transport.start()
        self._listening = True
        self._report = self._loop.create_task(self._keep_reporting())
        self._following = self._loop.create_task(self._follow())
        self._report_soon()

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
        self._gate.close()
        try:
            await asyncio.wait_for(self._gate.wait_empty(), server.grace_seconds)
        except TimeoutError:
            logger.error("requests were still unanswered after %g s of grace", server.grace_seconds)
            await self._transport.stop(0)
            return False
        await self._transport.stop(_LAST_WORDS)
        return True

    def _update(self, table: Table) -> None:
        self._catalogue.update(table)
        self._report_soon()

    def _release(self, model: str, version: int) -> None:
        """Releases a version that no longer serves and that no request refers to any more."""
        self._client.forget(model, version)
        loop = asyncio.get_running_loop()
        loop.call_later(self._config.server.keep_metrics_seconds, self._forget, model, version)

    def _forget(self, model: str, version: int) -> None:
        rows = self._catalogue.table.versions
        if not any((row.model, row.version, row.state) == (model, version, "READY") for row in rows):
            metric_files.forget_version(model, version)

    def _write_levels(self) -> None:
        metrics.IN_FLIGHT.set(self._gate.requests)
        metrics.IN_FLIGHT_BYTES.set(self._gate.bytes)
        # What has landed is a part of a slot, or waits to be copied into one.
        metrics.SLOTS.set(self._client.arena.blocks - self._landings.blocks)
        metrics.SLOT_BYTES.set(self._client.arena.used_bytes)

    def refuse(self, deadly: messages.Deadly) -> None:
        """Refuses an input that has ended engines on requests of another front end."""
        self._client.refuse(Guilty(deadly.digest, deadly.sample))

    def _report_deadly(self, request: Request, guilty: Guilty) -> None:
        with suppress(OSError):  # the supervisor is stopped or has died
            messages.send(self._supervisor, messages.Deadly(request.model, request.version, *guilty))

    async def _follow(self) -> None:
        """Reads files again that have changed."""
        renewed = False
        while self._tls is not None or self._callers is not None:
            if self._tls is not None:
                renewed = self._tls.poll() or renewed
                if renewed:
                    try:
                        await self._transport.renew()
                        renewed = False
                    except OSError as error:  # such as too many open files: the next round tries again
                        logger.error("new certificates cannot be used yet: %s", error.strerror)
                metrics.CERTIFICATE_EXPIRY.labels("grpc").set(self._tls.value.expires)
                metrics.RELOAD_FAILED.labels("tls").set(self._tls.failed)
            if self._callers is not None:
                access.poll(self._callers)
                metrics.RELOAD_FAILED.labels("callers").set(self._callers.failed)
            await asyncio.sleep(POLL_SECONDS)

    def _report_soon(self) -> None:
        self._reports.set()

    async def _keep_reporting(self) -> None:
        """Reports every change of status to the supervisor and to the health service's watchers."""
        while True:
            await self._reports.wait()
            self._reports.clear()
            status = self._now()
            if status != self._status:
                try:
                    messages.send(self._supervisor, status)
                    self._status = status
                except BlockingIOError:  # the supervisor is stopped and its socket is full
                    self._loop.call_later(1.0, self._report_soon)
            self._set_health(status.ready)

    def _now(self) -> messages.Status:
        table = self._catalogue.table
        if self._draining:
            reason = "draining"
        elif not self._client.engines.connected:
            reason = "the engine is starting"
        elif not table.complete:
            reason = table.problem or "models are loading"
        elif len(self._client.engines.lost) == len(self._client.engines.by_device):
            reason = "the engine has died, and the next one is loading"
        elif not table.ready:
            faults = [f"{row.model} version {row.version}: {row.reason}" for row in table.versions if row.reason]
            reason = "no model serves" + (f": {'; '.join(faults)}" if faults else ": the repository contains no model")
        else:
            return messages.Status(self._listening, True, _without(self._client.engines.lost))
        return messages.Status(self._listening, False, reason[:_MAX_REASON])

    def _set_health(self, ready: bool) -> None:
        """Sets the health of the server (the empty name), each service, and each model: `NAME` and `NAME/VERSION`."""
        serving = {row.model for row in self._catalogue.table.versions if row.state == "READY"}
        serving |= {f"{row.model}/{row.version}" for row in self._catalogue.table.versions if row.state == "READY"}
        known = {row.model for row in self._catalogue.table.versions}
        services = {"", *(service.full_name for service in _SERVICES)}
        for name in services | serving | known | self._health_services:
            self._health.set(name, ready and (name in services or name in serving))
        self._health_services |= serving | known


def _without(devices: Sequence[int]) -> str:
    if not devices:
        return ""
    return f"no engine serves on device {' and '.join(map(str, devices))} now: the others do all"


async def _main(supervisor: socket.socket, pulse: Pulse) -> int:
    start = messages.receive_start(supervisor)
    log.configure(start.config.server.log_level, "frontend", start.config.server.log_format)
    beating = asyncio.ensure_future(beat(pulse, start.config.server.heartbeat_seconds))
    try:
        front_end = FrontEnd(start, supervisor)
    except BadConfig as error:  # a file has become unusable since the server started
        logger.error("%s", error.message)
        return 1
    loop = asyncio.get_running_loop()
    over: asyncio.Future[bool] = loop.create_future()

    async def drain() -> None:
        complete = await front_end.drain()
        if not over.done():
            over.set_result(complete)

    draining: list[asyncio.Task[None]] = []

    def receive(message: messages.Message, connection: socket.socket | None) -> None:
        if isinstance(message, messages.Link) and connection is not None:
            front_end.attach(connection, message.device, from_outside=message.from_outside)
        elif isinstance(message, messages.Deadly):
            front_end.refuse(message)
        elif isinstance(message, messages.Drain) and not draining:
            draining.append(loop.create_task(drain()))

    def end() -> None:
        if not over.done():
            over.set_result(False)

    await front_end.listen()
    messages.listen(supervisor, receive, end)
    complete = await over
    beating.cancel()
    return 0 if complete else 1


def main() -> None:
    """Runs a front end; the arguments are the descriptors of the channel to the supervisor, and of the pulse."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal: the supervisor decides
    connection = socket.socket(fileno=int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_main(connection, Pulse(int(sys.argv[2]))))
    os._exit(status)  # threads may still decode for cancelled calls


if __name__ == "__main__":
    main()
