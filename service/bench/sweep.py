"""Serves one model in several ways, one after the other, to the same callers. Owns the servers that it starts."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from convoy.service.bench import fleet, vision
from convoy.service.bench.plan import Closed, Plan
from convoy.service.bench.report import summarise
from convoy.service.errors import ConvoyError

_WARM_UP = 1.0  # seconds of load before each measurement
_STARTING = 300.0  # seconds for a server to load a large network
_STOPPING = 30.0
_DEADLINE = 60.0  # seconds; with few images a second, callers wait for each other
# `convoy serve`, whatever the current folder and PATH.
_SERVE = [sys.executable, "-c", "from convoy.service.cli import main; main()", "serve"]
# Messages after which a server does not become ready: its command refuses something, or its model cannot be loaded.
# Other errors, such as that the repository cannot be watched, do not keep it from serving.
_FINAL = re.compile(r"^convoy serve: |is not served: ")
_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


class Way(NamedTuple):
    """A way to serve the only model of a repository."""

    repository: Path
    settings: tuple[str, ...]  # section.key=value


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What callers received. `rounds` is the images a second of each round."""

    rounds: list[float]
    mean_batch_size: float

    @property
    def images_per_second(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)


class ServerFailed(ConvoyError):
    """A server did not start, or did not answer."""

    reason = "SERVER_FAILED"


def sweep(
    model: str, ways: Sequence[Way], callers: int, seconds: float, rounds: int, size: tuple[int, int]
) -> list[Served]:
    """Load each way with `callers` callers for `seconds`, in each of several rounds, every other one backwards.

    One server runs at a time. In rounds, because a change of the machine's speed would otherwise favour some ways.
    `size` is that of the images (height, width). Raises ServerFailed, ConvoyError.
    """
    rates: list[list[float]] = [[] for _ in ways]
    batches: list[list[float]] = [[] for _ in ways]
    for number in range(rounds):
        order = range(len(ways)) if number % 2 == 0 else reversed(range(len(ways)))
        for place in order:
            with server(ways[place]) as target:
                plan = Plan(
                    server=target,
                    models=vision.models(target, [(model, 1.0)], _DEADLINE),
                    load=Closed(callers, seconds),
                    warm_up=_WARM_UP,
                    batch=1,
                    deadline=_DEADLINE,
                    seed=number,
                    processes=1,
                    folder=None,
                    sizes=(size,),
                )
                figures = summarise(plan, fleet.run(plan)).all
            if not figures.images:
                raise ServerFailed(f"nothing was answered: {next(iter(figures.messages.values()), 'too slow')}")
            rates[place].append(figures.images_per_second)
            batches[place].append(figures.mean_batch_size)
    return [
        Served(rounds=rate, mean_batch_size=sum(batch) / rounds) for rate, batch in zip(rates, batches, strict=True)
    ]


@contextmanager
def server(way: Way) -> Iterator[str]:
    """A server of its own, ready to be called at the returned address. Raises ServerFailed."""
    settings = [part for setting in ("server.lame_duck_seconds=0", *way.settings) for part in ("--set", setting)]
    process = subprocess.Popen(
        [*_SERVE, "--repository", str(way.repository), *_PORTS, *settings],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C ends this process, which ends the server
    )
    try:
        yield _ready(process)
    finally:
        process.terminate()
        try:
            process.wait(_STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes]) -> str:
    """Wait until it is ready; its address. Its log is read until it ends, or it would block."""
    timer = threading.Timer(_STARTING, process.kill)
    timer.start()
    assert process.stderr is not None
    target = ""
    try:
        for line in process.stderr:
            entry = _entry(line)
            if _FINAL.search(entry.message):
                raise ServerFailed(entry.message)
            target = entry.grpc or target
            if entry.message == "ready":
                threading.Thread(target=_drain, args=[process], daemon=True).start()
                return target
    finally:
        timer.cancel()
    raise ServerFailed("the server ended before it was ready")


class _Entry(msgspec.Struct):
    """Fields of a log record."""

    message: str = ""
    grpc: str = ""  # of the record that it listens


def _entry(line: bytes) -> _Entry:
    try:
        return msgspec.json.decode(line, type=_Entry)
    except msgspec.MsgspecError:
        return _Entry(line.decode(errors="replace").strip())  # of the command, before it logs, or of a library


def _drain(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    with process.stderr as log:
        for _ in log:
            pass
