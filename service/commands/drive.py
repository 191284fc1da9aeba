"""Sends requests in a closed or an open loop and notes when each was due, sent and finished."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from service.client import Timings


class Refusal(NamedTuple):
    """Why an image was not answered: `name` is the error's code and reason, its `message` may tell more."""

    name: str
    message: str


class Outcome(NamedTuple):
    """What came of one request: the timings of its answered images, and why the others were refused."""

    answered: tuple[Timings, ...]
    refused: tuple[Refusal, ...]


class Sample(NamedTuple):
    """One request. Times are in seconds from the start of the drive."""

    due: float  # when it should have been sent; latency counts from here, so a stall is not left out
    sent: float
    finished: float
    outcome: Outcome


Send = Callable[[int], Awaitable[Outcome]]  # sends the request of this number; never raises


async def closed_loop(send: Send, callers: int, seconds: float) -> list[Sample]:
    """`callers` callers for `seconds`, each sending its next request when its last one is answered."""
    samples: list[Sample] = []
    now = _stopwatch()
    sent = 0

    async def call() -> None:
        nonlocal sent
        while (start := now()) < seconds:
            sent += 1
            outcome = await send(sent - 1)
            samples.append(Sample(start, start, now(), outcome))

    await asyncio.gather(*(call() for _ in range(callers)))
    return samples


async def open_loop(send: Send, due_times: Iterable[float]) -> list[Sample]:
    """A request at each of `due_times` (seconds, ascending), whether or not earlier ones have been answered."""
    samples: list[Sample] = []
    now = _stopwatch()

    async def call(number: int, due: float) -> None:
        start = now()
        outcome = await send(number)
        samples.append(Sample(due, start, now(), outcome))

    async with asyncio.TaskGroup() as calls:
        for number, due in enumerate(due_times):
            await asyncio.sleep(max(0.0, due - now()))
            calls.create_task(call(number, due))
    return samples


def _stopwatch() -> Callable[[], float]:
    clock = asyncio.get_running_loop().time
    start = clock()
    return lambda: clock() - start
