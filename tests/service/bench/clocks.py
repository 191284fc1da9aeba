"""An event loop on a virtual clock, and what the tests of a load test send there."""

import asyncio
import selectors

from convoy.service.bench.calls import Outcome
from convoy.service.client.results import Timings


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only by being waited for, and then at once."""

    def __init__(self):
        super().__init__(_NeverWaits(self))
        self.now = 0.0

    def time(self):
        return self.now


class _NeverWaits(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        self.loop.now += timeout or 0.0
        return super().select(0)


def run(coroutine):
    """What an asynchronous function without arguments returns, on a virtual clock that begins at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine())


def now():
    """The clock of the running loop."""
    return asyncio.get_running_loop().time()


def timings(batch_size=1, **seconds):
    """Those of one image; what is not given took no time."""
    stages = dict.fromkeys(Timings.__struct_fields__, 0.0)
    return Timings(**{**stages, **seconds, "batch_size": batch_size})


ANSWERED = Outcome(0, 1, (timings(),), ())


def one_at_a_time(service_seconds, stall=(0.0, 0.0)):
    """A server that answers each request after `service_seconds`, one after the other, and starts none in the stall."""
    free_at = 0.0

    async def send(number):
        nonlocal free_at
        start = max(now(), free_at)
        start = stall[1] if stall[0] <= start < stall[1] else start
        free_at = start + service_seconds
        await asyncio.sleep(free_at - now())
        return ANSWERED

    return send
