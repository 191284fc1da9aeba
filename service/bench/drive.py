"""Sends requests in a closed or an open loop and records when each was due, sent and finished."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple

from convoy.service.client.results import Timings


class Refusal(NamedTuple):
    """Why an image was not answered: `name` is the error's code and reason, `message` its details."""

    name: str
    message: str


class Outcome(NamedTuple):
    """The outcome of one request. `timings` are those of answered images, if the server reports them."""

    model: int  # index in the plan's models
    answered: int  # images
    timings: tuple[Timings, ...]
    refused: tuple[Refusal, ...]  # one per image that was not answered


class Sample(NamedTuple):
    """One request. Times are in seconds from the start of the drive."""

    due: float  # when it should have been sent; latency counts from here, so that stalls are included
    sent: float
    finished: float
    outcome: Outcome


Send = Callable[[int], Awaitable[Outcome]]  # sends the request with this number; never raises
Record = Callable[[Sample], None]
Now = Callable[[], float]  # seconds from the start of the drive


async def closed_loop(
    send: Send, numbers: Iterator[int], callers: int, seconds: float, now: Now, record: Record
) -> None:
    """Run `callers` callers for `seconds`. Each sends its next request when its previous one is answered."""

    async def call() -> None:
        while (start := now()) < seconds:
            outcome = await send(next(numbers))
            record(Sample(start, start, now(), outcome))

    await asyncio.gather(*(call() for _ in range(callers)))


async def open_loop(send: Send, due_times: Iterable[tuple[int, float]], now: Now, record: Record) -> None:
    """Send each request at its due time (ascending), whether or not earlier ones have been answered."""

    async def call(number: int, due: float) -> None:
        start = now()
        outcome = await send(number)
        record(Sample(due, start, now(), outcome))

    async with asyncio.TaskGroup() as calls:
        for number, due in due_times:
            await asyncio.sleep(max(0.0, due - now()))
            calls.create_task(call(number, due))


async def lateness(every: float, seconds: float, now: Now, record: Callable[[float, float], None]) -> None:
    """Measure how late the loop runs a periodic tick, because a closed loop has no due times to compare with.

    `record` is called with the due time and the delay.
    """
    for due in itertools.takewhile(lambda due: due < seconds, (count * every for count in itertools.count(1))):
        await asyncio.sleep(max(0.0, due - now()))
        record(due, now() - due)


async def busy(start: float, end: float, now: Now) -> float:
    """This process's CPU time between two times, as a share of one core."""
    await asyncio.sleep(start - now())
    before, began = time.process_time(), time.monotonic()
    await asyncio.sleep(end - now())
    return (time.process_time() - before) / (time.monotonic() - began)
