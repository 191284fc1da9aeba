"""R4: servers that end while callers use all they can give.

Two servers, and callers that know both addresses: our client, which uses one until it leaves, or in turn those that say
they serve. One server after the other drains, ends and comes again, as in a rolling update. Nothing else tells the
callers.
"""

import signal
import tempfile
import time
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from convoy.service.client.aio import AsyncClient
from tests.reliability.crowd import Connect, Crowd, check, describe
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import moment, settings
from tests.service import networks
from tests.service.running import Server
from tools.ports import free_ports

_GRACE = 10.0  # seconds
_LATE = 5.0  # beyond the lame duck's time and the grace: what a busy machine adds
_GAP = 0.5


async def _ask(client: AsyncClient, call: int) -> None:
    image = call % DISTINCT
    check(await client.classify(grey(image), "slow" if call % 4 == 0 else "letters"), image)


def run(trials: int, seed: int, number: int = signal.SIGTERM, *, lame_duck: float = 0.5) -> Tally:
    """Ends and starts so many servers."""
    random = np.random.default_rng(seed)
    count = Count()
    options = [
        *settings(seed),
        f"server.lame_duck_seconds={lame_duck}",
        f"server.grace_seconds={_GRACE}",
        f"server.frontends={1 + seed // 4 % 2}",
    ]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        networks.save(networks.classifier(), Path(folder), "letters")
        networks.save(networks.slow(2), Path(folder), "slow")
        ports = [str(port) for port in free_ports(2)]  # which stay theirs
        servers = [Server(Path(folder), options, wait=False, grpc_port=port) for port in ports]
        for server in servers:
            stack.callback(server.stop)
        for server in servers:
            server.wait_for_log("ready")
        crowd = stack.enter_context(Crowd("", _ask, connect=_connect(servers, spread=seed // 2 % 2 == 1)))
        crowd.progress()
        for trial in range(trials):
            # The one that has the load, where only one of them has.
            which = max(range(2), key=lambda each: (servers[each].total("convoy_requests_in_flight"), random.random()))
            old = servers[which]
            moment(random, _GAP)
            before = len(crowd.failed)
            began = time.monotonic()
            old.process.send_signal(number)
            code = old.process.wait(120)
            seconds = time.monotonic() - began
            settled = crowd.settle() and crowd.progress()
            count.see("seconds of a drain", seconds)
            found = []
            if errors := crowd.failed[before:]:
                found.append(f"{len(errors)} calls failed: {describe(errors)}")
            if not settled:
                found.append("calls were not answered")
            if code != 0:
                found.append(f"exit code {code}, want 0")
            if seconds > lame_duck + _GRACE + _LATE:
                found.append(f"it took {seconds:.1f} s")
            if found:
                count.bad(f"drain {trial} of seed {seed}: {'; '.join(found)}")
            else:
                count.good()
            if trial == trials - 1:
                break
            servers[which] = stack.enter_context(Server(Path(folder), options, grpc_port=ports[which]))
            crowd.progress()
    return count.tally()


def _connect(servers: list[Server], *, spread: bool) -> Connect:
    target = "ipv4:" + ",".join(server.grpc for server in servers)

    def connect() -> AbstractAsyncContextManager[Any]:
        return AsyncClient(target, balance=spread)

    return connect


def control(seed: int) -> Tally:
    """Servers that are killed instead."""
    return run(1, seed, signal.SIGKILL)


PROBE = Probe(
    "R4",
    "A server that is stopped under full load answers every accepted request and exits with 0. Clients that know two "
    "servers have no failed call.",
    "drains",
    200,
    20,
    run,
    control,
)
