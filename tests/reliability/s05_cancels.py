"""S5: callers that cancel at any stage. A slot that an engine still uses is not given to another request."""

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from convoy.service.client.aio import AsyncClient
from tests.reliability.crowd import check
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import check_nothing_is_left, settings
from tests.service import networks
from tests.service.running import Server

_TOGETHER = 60  # calls
_CONNECTION = 900  # calls of a connection: one on which more than a thousand are reset in a short time is ended
_LIMIT = 60.0  # seconds for an answer to a caller who does not cancel
_PATIENCE = (0.001, 0.005, 0.02, 0.1)  # seconds, the mean of the callers of one burst


def run(trials: int, seed: int, *, shift: int = 0) -> Tally:
    """Begins so many calls, most of which are cancelled before their answer."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        networks.save(networks.classifier(shift=shift), Path(folder), "letters")
        networks.save(networks.slow(1), Path(folder), "slow")
        with Server(Path(folder), [*settings(seed), f"server.frontends={1 + seed // 2 % 2}"]) as server:
            asyncio.run(_storm(server, trials, seed, count))
            check_nothing_is_left(server, count, f"seed {seed}")
            if server.total("convoy_cancelled_total") == 0:
                count.also_bad(f"seed {seed}: the server noticed no cancelled call")
    return count.tally()


async def _storm(server: Server, trials: int, seed: int, count: Count) -> None:
    random = np.random.default_rng(seed)

    async def one(client: AsyncClient, call: int, patience: float) -> None:
        model = "slow" if call % 20 == 0 else "letters"
        task = asyncio.ensure_future(client.classify(grey(call % DISTINCT), model))
        done, _ = await asyncio.wait([task], timeout=patience)
        if not done:
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            count.good()
            return
        try:
            check(task.result(), call % DISTINCT)
        except Exception as error:
            count.bad(f"call {call} of seed {seed}: {type(error).__name__}: {error}")
        else:
            count.good()

    for first in range(0, trials, _CONNECTION):
        async with AsyncClient(server.grpc, retry=False) as client:
            last = min(first + _CONNECTION, trials)
            for begin in range(first, last, _TOGETHER):
                mean = float(random.choice(_PATIENCE))
                calls = range(begin, min(begin + _TOGETHER, last))
                patience = random.exponential(mean, len(calls))
                patience[1:2] = _LIMIT  # one call of the fast network is answered, however slow the machine is
                begun = zip(calls, patience, strict=True)
                await asyncio.gather(*(one(client, call, float(seconds)) for call, seconds in begun))


def control(seed: int) -> Tally:
    """A network that gives each image another's answer."""
    return run(_CONNECTION, seed, shift=1)


PROBE = Probe(
    "S5",
    "Calls that are cancelled at any stage leave nothing behind, and mix up no answers.",
    "calls, most of them cancelled",
    1_000_000,
    50_000,
    run,
    control,
)
