"""R3: front ends that are killed under load, beside callers with the client's own retries.

Requests of 20 kB come from the client for asyncio and requests of 1.5 MB from the client for threads, or the other way
round. With one front end, callers wait at the port for its start; with gRPC's own transport, which closes the port, the
retries have to bridge it.
"""

import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import Classification
from tests.reliability.crowd import Crowd, describe
from tests.reliability.neighbours import Neighbours
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import (
    PATIENT,
    accepted,
    check_nothing_is_left,
    hit,
    moment,
    restarts,
    settings,
    standing,
    transport,
    until,
)
from tests.service import networks
from tests.service.running import Server

_CALLERS = (4, 3)  # of the two clients
_SIDES = (142, 1225)  # of grey pictures of 20 kB and of 1.5 MB
_PICTURES = 4  # of each size
_GAP = 0.3  # seconds: the most until the next kill
_WINDOW = 0.5  # seconds, of which goodput is taken
_BACK, _LEAST = 0.95, 0.5  # of the goodput before: what is looked for, and what is required
_BUSY = 120.0  # seconds for which others may keep the cores from this machine's servers
_PATIENCE = 4  # start times


class _Pictures:
    """Pictures of one size, and what a server that nothing happens to says of them."""

    def __init__(self, side: int, target: str) -> None:
        random = np.random.default_rng(side)
        self.pictures: list[NDArray[np.uint8]] = [
            random.integers(0, 256, (side, side), np.uint8) for _ in range(_PICTURES)
        ]
        with Client(target) as client:
            self._right = [self._labels(client.classify(each, "letters")) for each in self.pictures]

    def _labels(self, answer: Classification) -> list[tuple[int, float]]:
        return [(label.index, round(label.probability, 4)) for label in answer.labels]

    def check(self, answer: Classification, call: int) -> None:
        assert self._labels(answer) == self._right[call % _PICTURES], f"wrong answer for picture {call % _PICTURES}"

    async def ask(self, client: AsyncClient, call: int) -> None:
        self.check(await client.classify(self.pictures[call % _PICTURES], "letters"), call)

    def ask_from_thread(self, client: Client, call: int) -> None:
        self.check(client.classify(self.pictures[call % _PICTURES], "letters"), call)


def run(trials: int, seed: int, *, retry: bool = True) -> Tally:
    """Kills so many front ends of one server: half of the seeds have two of them."""
    random = np.random.default_rng(seed)
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        networks.save(networks.classifier(), Path(folder), "letters")
        began = time.monotonic()
        front_ends = 1 + seed // 2 % 2
        options = [*settings(seed), f"server.frontends={front_ends}", *([] if retry else [PATIENT])]
        with Server(Path(folder), options) as server:
            start = time.monotonic() - began
            kinds = [_Pictures(side, server.grpc) for side in _SIDES[:: 1 if seed // 4 % 2 else -1]]
            with (
                Crowd(server.grpc, kinds[0].ask, callers=_CALLERS[0], retry=retry) as crowd,
                Neighbours(server.grpc, kinds[1].ask_from_thread, callers=_CALLERS[1], retry=retry) as neighbours,
            ):
                for trial in range(trials):
                    where = f"kill {trial} of seed {seed}"
                    alone = transport(seed) if front_ends == 1 else ""
                    _kill(server, crowd, neighbours, random, count, where, start, alone, held=not retry)
            check_nothing_is_left(server, count, f"seed {seed}")
    return count.tally()


def _kill(
    server: Server,
    crowd: Crowd,
    neighbours: Neighbours,
    random: np.random.Generator,
    count: Count,
    where: str,
    start: float,
    alone: str,
    *,
    held: bool,
) -> None:
    """`alone` is the transport of a server with one front end. With several, all connections are at the others
    afterwards and stay there, so the pace is another one. `held`: each caller has a call as the front end dies."""
    before = len(crowd.failed), len(neighbours.failed), restarts(server, "frontend")
    # All of them serve: otherwise the retries would have to last for as long as this machine takes to start another.
    ready = until(lambda: server.get(f"{server.http}/readyz")[0] == 200)
    steady = time.monotonic()
    until(lambda: time.monotonic() > steady + _WINDOW)
    if alone:  # what the machine's other users do to the figure: it is taken once more, and nothing happens
        count.see("start times until 0.95 of the goodput, nothing killed", _recovery(crowd, steady, start))
    moment(random, _GAP)
    killed = time.monotonic()
    with standing(server) if held else contextlib.nullcontext():
        if held:
            accepted(server, sum(_CALLERS))
        hit(server, "frontend", random)
    settled = ready and until(lambda: restarts(server, "frontend") > before[2])
    settled &= crowd.settle() and neighbours.settle() and crowd.progress()
    errors = [*crowd.failed[before[0] :], *neighbours.failed[before[1] :]]
    if errors:
        count.bad(f"{where}: {len(errors)} calls failed: {describe(errors)}")
    elif not settled:
        count.bad(f"{where}: calls were not answered")
    else:
        count.good()
    if not alone:
        return
    # On a machine that others use as well, the pace of one moment says little: only half of it is required, and not
    # before the others leave room for it.
    goodput = crowd.rate(steady, killed)
    count.see(f"start times until 0.95 of the goodput, {alone}", _recovery(crowd, steady, start, killed))
    if not until(lambda: _now(crowd) >= _LEAST * goodput, _BUSY):
        count.also_bad(f"{where}: {_LEAST:g} of the goodput was not back")


def _recovery(crowd: Crowd, steady: float, start: float, since: float | None = None) -> float:
    """Start times from a moment, by default now, until the goodput is what it was from `steady` to that moment."""
    since = since or time.monotonic()
    goodput = crowd.rate(steady, since)
    until(lambda: time.monotonic() > since + _WINDOW and _now(crowd) >= _BACK * goodput, _PATIENCE * start)
    return max(0.0, time.monotonic() - _WINDOW - since) / start


def _now(crowd: Crowd) -> float:
    now = time.monotonic()
    return crowd.rate(now - _WINDOW, now)


def control(seed: int) -> Tally:
    """The same without retries."""
    return run(2, seed, retry=False)


PROBE = Probe(
    "R3",
    "A front end that is killed under load costs no call of a client with the retries it has by default.",
    "kills of a front end",
    300,
    20,
    run,
    control,
)
