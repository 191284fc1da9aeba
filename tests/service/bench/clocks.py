"""Clocks for tests of a load test: an event loop on a virtual one, what is sent there, and a patient one."""

import asyncio
import selectors

from convoy.service.bench import client
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


def begin_with_a_request(monkeypatch, *, answered=False):
    """The seconds of a closed loop in this process begin when it sends its first request; with `answered`, once the
    server has answered one that does not count. On a busy machine they may be over before: then nothing is measured."""
    closed_loop = client.closed_loop

    async def patient(send, numbers, callers, seconds, now, record):
        began = None

        async def first(number):
            nonlocal began
            began = now() if began is None else began
            return await send(number)

        if answered:
            await send(next(numbers))
        await closed_loop(first, numbers, callers, seconds, lambda: 0.0 if began is None else now() - began, record)

    monkeypatch.setattr(client, "closed_loop", patient)
