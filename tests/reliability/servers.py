"""What probes of whole servers share: their settings, how one of their processes ends, and what must not be left."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from convoy.service import machine
from tests.reliability.probe import Count
from tests.service.running import Server

PATIENT = "server.heartbeat_seconds=0"  # of a server whose engines may stand still
QUICK = ("server.lame_duck_seconds=0", "repository.trial_seconds=0", "repository.poll_seconds=0.2")
_TRANSPORTS = ("nghttp2", "grpcio") if machine.has_library(machine.HTTP2_LIBRARY) else ("grpcio",)
_SECONDS = 30.0  # until what goes on its own has gone


def settings(seed: int) -> list[str]:
    """Of the server of a chunk: every second seed has the other transport."""
    return [*QUICK, f"server.transport={transport(seed)}"]


def transport(seed: int) -> str:
    """Of the server of a chunk."""
    return _TRANSPORTS[seed % len(_TRANSPORTS)]


def until(holds: Callable[[], object], seconds: float = _SECONDS) -> bool:
    """Waits until it holds; returns whether it does."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        pause(0.005)
    return True


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def moment(random: np.random.Generator, most: float) -> None:
    """Waits for a random part of so many seconds."""
    pause(float(random.uniform(0.0, most)))


def hit(server: Server, kind: str, random: np.random.Generator, number: int = signal.SIGKILL) -> int:
    """Signals one of the processes of a kind, as soon as there is one; its process id."""
    while True:
        found: list[int] = []
        assert until(lambda found=found: found.extend(server.processes(kind)) or found), f"no {kind}"  # type: ignore[misc]
        chosen = int(random.choice(found))
        with contextlib.suppress(ProcessLookupError):  # one that has just ended
            os.kill(chosen, number)
            return chosen


@contextlib.contextmanager
def standing(server: Server, engines: int = 1) -> Iterator[None]:
    """The engines of a PATIENT server stand still meanwhile: what is accepted waits."""
    until(lambda: len(server.processes("engine")) == engines)
    stopped = server.processes("engine")
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def accepted(server: Server, calls: int) -> bool:
    """Waits until this many calls are in flight, while the engines stand still. Returns whether they are."""
    return until(lambda: server.total("convoy_requests_in_flight") == calls)


def restarts(server: Server, kind: str) -> float:
    """How many processes of a kind were started again."""
    return server.total(f"convoy_{kind}_restarts_total")


def check_nothing_is_left(server: Server, count: Count, where: str) -> None:
    """Gauges must be at 0 once nobody calls any more."""
    for gauge in ("slots", "slot_bytes", "requests_in_flight", "in_flight_bytes", "queue_depth"):
        if left := server.wait_for_total(f"convoy_{gauge}", 0):
            count.also_bad(f"{where}: convoy_{gauge} is {left:g}, want 0 once nobody calls")
