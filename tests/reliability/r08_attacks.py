"""R8: callers that misuse connections, and what good callers notice of them.

What the attacker costs the machine falls on the same attack on another server, too: goodput beside one is divided by
goodput beside the other. All of this is about the transport on libnghttp2, which bounds what a connection may do.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from tests.performance import load
from tests.performance.attacks import attacking
from tests.performance.connections import resident
from tests.performance.figure import CLASSIFY, request
from tests.performance.processes import cpu_seconds
from tests.performance.trials import in_turns
from tests.reliability.neighbours import Neighbours
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import QUICK, check_nothing_is_left, pause, until
from tests.service import networks
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import DATA, END_STREAM, SETTINGS, Raw, frame, message
from tests.service.running import Server

_TRANSPORT = "server.transport=nghttp2"
_SECONDS = 60.0  # of an attack, which is ended before
_CALLS = 1000  # of a trial
_CALM, _LOOK = 0.2, 0.5  # share of a core that a front end takes beside slow callers, and the seconds of a look at it
_PAIRS = 2
_MOST_GROWN = 64e6  # bytes of the front end
# Of the goodput. On a machine that others use as well, it says little: what is required finds a server without defence.
_LEAST = 0.5
_LIST = "/convoy.v1.Vision/ListModels"
_ATTACKS = ("slow callers", "rapid resets")
_HONEST = "honest callers"


def run(
    trials: int, seed: int, attacks: tuple[str, ...] = _ATTACKS, *, calls: int = _CALLS, pairs: int = _PAIRS
) -> Tally:
    """Attacks a server by so many callers that hardly send or read anything, and by resets."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        networks.save(networks.classifier(), Path(folder), "letters")
        # An image takes the engine a millisecond: so it has a share for each caller, which others can take.
        options = [*QUICK, _TRANSPORT, "engine.sleep_ms=[0, 1]"]
        with Server(Path(folder), options) as attacked, Server(Path(folder), options) as other:
            for attack in attacks:
                where = f"{trials} connections of seed {seed}, {attack}"
                pid = attacked.children()["frontend"]
                before = resident(pid)
                grown: list[float] = []

                failed: list[grpc.StatusCode] = []

                def goodput(server: Server, attack: str, pid: int, grown: list[float], failed: list[Any]) -> float:
                    with attacking(attack, server.grpc, trials, _SECONDS):
                        if attack == "slow callers":
                            _settle(server.children()["frontend"])
                        elif attack == _HONEST:
                            until(partial(_are_there, server, trials // 2))
                        answers = load.closed(attacked.grpc, CLASSIFY, request(32, 1), 4, calls)
                        grown.append(resident(pid))
                    failed.extend(answers.errors)
                    return len(answers.latencies) / answers.seconds

                kept = {"attack": attack, "pid": pid, "grown": grown, "failed": failed}

                ours, theirs = in_turns(partial(goodput, attacked, **kept), partial(goodput, other, **kept), pairs)
                if failed:
                    count.also_bad(f"{where}: {len(failed)} good calls failed: {failed[:3]}")
                share = statistics.median(one / two for one, two in zip(ours, theirs, strict=True))
                count.see(f"goodput lost to {attack}", 1 - share)
                count.see(f"MB more for {attack}", (max(grown) - before) / 1e6)
                if share < _LEAST:
                    count.also_bad(f"{where}: {share:.2f} of the goodput is left, want {_LEAST}")
                if max(grown) - before > _MOST_GROWN:
                    count.also_bad(f"{where}: {(max(grown) - before) / 1e6:.0f} MB more, want {_MOST_GROWN / 1e6:.0f}")
            count.good(trials)
            check_nothing_is_left(attacked, count, f"seed {seed}")
    return count.tally()


def _settle(pid: int) -> None:
    """Waits until the calls are answered that came with the connections: those are what anybody may ask."""
    for _ in range(round(_SECONDS / 2 / _LOOK)):
        before = cpu_seconds(pid)
        pause(_LOOK)
        if cpu_seconds(pid) - before < _CALM * _LOOK:
            return


def _are_there(server: Server, callers: int) -> bool:
    """Whether this many calls are in flight. The callers' process reports that it has begun before it connects."""
    return server.total("convoy_requests_in_flight") >= callers


def control(seed: int) -> Tally:
    """Callers that only send what everybody may send, against which nothing but a quota helps. Of so short trials, one
    may be disturbed."""
    return run(64, seed, (_HONEST,), calls=40, pairs=3)


@contextlib.contextmanager
def _server(seed: int, count: Count, patience: float = _SECONDS) -> Iterator[Server]:
    """A server with good callers, and afterwards without anything that is left of the others."""
    with tempfile.TemporaryDirectory() as folder:
        networks.save(networks.classifier(), Path(folder), "letters")
        with Server(Path(folder), [*QUICK, _TRANSPORT]) as server:
            pid = server.children()["frontend"]
            with Neighbours(server.grpc) as neighbours:
                until(lambda: neighbours.answered > 4)
                before = _descriptors(pid)
                yield server
                if not until(lambda: _descriptors(pid) <= before, patience):
                    count.also_bad(f"seed {seed}: {_descriptors(pid) - before} descriptors more than before")
            if neighbours.failed:
                count.also_bad(f"seed {seed}: {len(neighbours.failed)} good calls failed: {neighbours.failed[0]}")
            check_nothing_is_left(server, count, f"seed {seed}")


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _address(server: Server) -> tuple[str, int]:
    host, _, port = server.grpc.rpartition(":")
    return host, int(port)


def _ask(caller: Raw, path: str = _LIST) -> str:
    """The gRPC status of a call."""
    caller.send(caller.headers(1, wire.request(path)) + frame(DATA, END_STREAM, 1, message(b"")))
    return caller.status(1)


def idle(trials: int, seed: int, *, leave: bool = True) -> Tally:
    """Opens so many connections that do nothing; one of a hundred is used at the end."""
    count = Count()
    with _server(seed, count, _SECONDS if leave else 1.0) as server, contextlib.ExitStack() as stack:
        before = resident(server.children()["frontend"])
        callers = [stack.enter_context(Raw(_address(server))) for _ in range(trials)]
        for caller in callers:
            caller.until(SETTINGS)
        count.see("kB for each idle connection", (resident(server.children()["frontend"]) - before) / trials / 1000)
        for number, caller in enumerate(callers):
            if number % 100 == 0 and (status := _ask(caller)) != "0":
                count.bad(f"connection {number} of seed {seed}: a call ended with status {status}")
            else:
                count.good()
        if not leave:
            for caller in callers:
                caller.socket.detach()  # its descriptor stays open
    return count.tally()


def idle_control(seed: int) -> Tally:
    """Connections that stay: their descriptors must be missed."""
    return idle(10, seed, leave=False)


def storm(trials: int, seed: int, *, path: str = _LIST) -> Tally:
    """Opens so many connections, one call each, from many threads at once."""
    count = Count()

    def connect(address: tuple[str, int], number: int) -> str:
        try:
            with Raw(address) as caller:
                caller.until(SETTINGS)
                return _ask(caller, path)
        except (OSError, AssertionError) as error:
            return f"{type(error).__name__}: {error}"

    with _server(seed, count) as server, ThreadPoolExecutor(32) as threads:
        for number, status in enumerate(threads.map(partial(connect, _address(server)), range(trials))):
            if status == "0":
                count.good()
            else:
                count.bad(f"connection {number} of seed {seed}: {status}")
    return count.tally()


def storm_control(seed: int) -> Tally:
    """Calls of a method that there is not."""
    return storm(10, seed, path="/convoy.v1.Vision/Nothing")


PROBES = (
    Probe(
        "R8",
        "Callers that send or read slowly, and such that reset calls, take neither goodput nor memory from the others.",
        "slow connections, and as many resets as they like",
        10_000,
        1000,
        run,
        control,
    ),
    Probe(
        "R8",
        "Idle connections cost memory in kilobytes, and nothing once they are gone.",
        "idle connections",
        40_000,
        8000,
        idle,
        idle_control,
    ),
    Probe(
        "R8",
        "Clients that all connect at once are all answered.",
        "connections of a storm",
        40_000,
        4000,
        storm,
        storm_control,
    ),
)
