"""A server that others misuse while a good caller asks it, and what must be so at the end."""

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from convoy.service import machine
from tests.reliability import leaks
from tests.reliability.neighbours import Neighbours
from tests.reliability.probe import Count, Tally
from tests.service import networks
from tests.service.running import Server

SECONDS = 20.0  # for any answer
_GRACE = 10.0  # seconds beyond its deadline in which a call must have ended, on a machine that is busy
Status = grpc.StatusCode
# What somebody may see who sends anything at all. INTERNAL is a fault of the server, but for the texts below.
STATUSES = {
    Status.OK,
    Status.INVALID_ARGUMENT,
    Status.NOT_FOUND,
    Status.UNIMPLEMENTED,
    Status.FAILED_PRECONDITION,
    Status.PERMISSION_DENIED,
    Status.RESOURCE_EXHAUSTED,
    Status.DEADLINE_EXCEEDED,
}


def transport(seed: int) -> str:
    """The two transports in turn; the only one where there is no other."""
    return "grpcio" if seed % 2 or not machine.has_library(machine.HTTP2_LIBRARY) else "nghttp2"


class Siege:
    """A server on the small networks, and a good caller beside everything that happens in the block.

    `count` gets what is wrong at the end: a process that has ended, a call of the neighbour that failed, a traceback or
    a line that is no record in the log, requests that are still in flight, an end that is not clean.
    """

    def __init__(
        self,
        count: Count,
        seed: int,
        settings: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        *,
        retry: bool = False,
    ) -> None:
        """`retry` lets the good caller try again where the server was not there for a moment."""
        self.count = count
        self._seed = seed
        self._settings = settings
        self._environment = environment
        self._retry = retry
        self._stack = ExitStack()

    @property
    def address(self) -> tuple[str, int]:
        """Of the gRPC port."""
        return host_and_port(self.server.grpc)

    def __enter__(self) -> Self:
        self.root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="siege-")))
        self.repository = self.root / "repository"
        for name, model in (
            ("letters", networks.classifier()),
            ("colours", networks.segmenter()),
            ("waves", networks.waves()),
            ("doubler", networks.doubler()),
        ):
            networks.save(model, self.repository, name)
        settings = ["server.frontends=1", "server.lame_duck_seconds=0", *self._settings]
        settings.insert(0, f"server.transport={transport(self._seed)}")
        # A folder of its own for temporary files: others on the machine may start and sweep servers, too.
        environment = {"TMPDIR": str(self.root), **(self._environment or {})}
        self.server = self._stack.enter_context(Server(self.repository, settings, environment=environment))
        self._processes = self._alive()
        self.neighbours = Neighbours(self.server.grpc, callers=1, retry=self._retry, repeats=self._retry)
        self._calling = self._stack.enter_context(ExitStack())
        self._calling.enter_context(self.neighbours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._check()
        finally:
            self._stack.close()

    def _alive(self) -> list[int]:
        found = [self.server.process.pid, *self.server.processes("engine"), *self.server.processes("frontend")]
        return found if self.server.process.poll() is None else []

    def _check(self) -> None:
        where = f"seed {self._seed}"
        if (alive := self._alive()) != self._processes:
            self.count.also_bad(f"{where}: processes {self._processes} were serving, {alive} are at the end")
            return
        before, until = self.neighbours.answered, time.monotonic() + SECONDS
        while self.neighbours.answered < before + 3 and time.monotonic() < until and not self.neighbours.failed:
            time.sleep(0.01)
        if self.neighbours.answered < before + 3:
            self.count.also_bad(f"{where}: the good caller gets no answers at the end")
        for failure in self.neighbours.failed[:3]:
            self.count.also_bad(f"{where}: a call of the good caller failed: {failure!r:.300}")
        for record in self.server.log:
            said = str(record)
            if record.get("level") == "raw" or any(sign in said for sign in ("Traceback", "'traceback'", "Warning: ")):
                self.count.also_bad(f"{where}: the log has {said[-600:]}")
        self._calling.close()
        left = self.server.wait_for_total("convoy_requests_in_flight", 0)
        if left:
            self.count.also_bad(f"{where}: {left:g} requests are still in flight at the end")
        if code := self.server.stop():
            self.count.also_bad(f"{where}: the server has ended with exit code {code}")
        for record in self.server.log:
            if "did not end in time" in record["message"]:
                self.count.also_bad(f"{where}: {record['message']}")
        self.count.see("longest call of the good caller, s", self.neighbours.longest)

    def wrong(self, error: grpc.RpcError, sent: bytes, began: float, seconds: float = SECONDS) -> str:
        """What is wrong with how a call ended; "" if nothing is."""
        code, details, took = error.code(), error.details() or "", time.monotonic() - began
        if took > seconds + _GRACE or (code == Status.DEADLINE_EXCEEDED and took > seconds - 1):
            return f"no answer for {took:.1f} s"
        if code not in STATUSES:
            return f"status {code.name}: {details!r}"
        return leaks.found(details, text_of(sent))


def with_a_death(kind: str, seed: int) -> Tally:
    """The control of all sieges: a process of the server dies, and another takes its place."""
    count = Count()
    with Siege(count, seed) as siege:
        (before,) = siege.server.processes(kind)
        os.kill(before, signal.SIGKILL)
        until = time.monotonic() + 2 * SECONDS
        while siege.server.processes(kind) in ([], [before]) and time.monotonic() < until:
            time.sleep(0.02)
    return count.tally()


def text_of(sent: bytes) -> str:
    """What a caller has sent, as a text of the server may repeat it."""
    return sent.decode(errors="replace")


def texts(message: Any) -> list[str]:
    """The texts of errors inside a response."""
    found = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                if hasattr(each, "ListFields"):
                    found += texts(each)
        elif field.name in ("message", "error_message", "reason") and isinstance(value, str):
            found.append(value)
    return found


def host_and_port(url: str) -> tuple[str, int]:
    """Of an address or a base URL."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)
