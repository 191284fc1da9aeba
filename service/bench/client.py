"""One client process of a load test: every n-th request of its plan, on one connection and one event loop.

Started by the fleet, it uses standard input and output, one line per message: it reads its share, reports that it is
ready, reads the start time, runs, and writes its findings. It exits when standard input closes, because its parent has
ended.
"""

import asyncio
import itertools
import os
import selectors
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from convoy.service.bench import findings, oip, vision
from convoy.service.bench.arrivals import arrivals
from convoy.service.bench.calls import Send, Streamed, Workload, connect, unary, weighted
from convoy.service.bench.findings import Findings, Recorder, Sample
from convoy.service.bench.plan import Closed, ImageModel, Open, Piece, Plan, Share, TargetModel, edges

Record = Callable[[Sample], None]
Now = Callable[[], float]  # seconds since the start of the warm-up
_TICK = 0.01  # seconds between two measurements of how late a closed loop's event loop is


def main() -> None:
    work = msgspec.json.decode(sys.stdin.buffer.readline(), type=Share)
    result = run(work.plan, work.share, _start_time)
    sys.stdout.buffer.write(findings.encode(result) + b"\n")
    sys.stdout.buffer.flush()
    os._exit(0)  # the thread that watches standard input would keep the interpreter alive


def run(plan: Plan, share: int, start: Callable[[], float]) -> Findings:
    """Send this share (0 to plan.processes - 1) of the requests. Blocks until all are answered or their time is up.

    start  called when everything is prepared; returns when to begin, by CLOCK_MONOTONIC
    """
    workloads = [_workload(plan, model, index) for index, model in enumerate(plan.models)]
    with asyncio.Runner(loop_factory=lambda: _loop(plan)) as runner:
        return runner.run(_run(plan, workloads, share, start))


async def drive(plan: Plan, send: Send, share: int, now: Now) -> Findings:
    """Send this share of the requests through `send`, and record when each was due, sent and finished."""
    recorder = Recorder(len(plan.models), edges(plan.load.pieces()), plan.warm_up)
    end = plan.warm_up + plan.load.seconds
    share_of_core = asyncio.create_task(busy(plan.warm_up, end, now))
    match plan.load:
        case Closed(callers=callers):
            numbers = itertools.count(share, plan.processes)
            own = len(range(share, callers, plan.processes))
            await asyncio.gather(
                closed_loop(send, numbers, own, end, now, recorder.record), lateness(_TICK, end, now, recorder.late)
            )
        case Open() as load:
            times = due_times(load, plan.warm_up, plan.seed)

            def record(sample: Sample) -> None:
                recorder.record(sample)
                recorder.late(sample.due, sample.sent - sample.due)

            own_times = itertools.islice(enumerate(times), share, None, plan.processes)
            await open_loop(send, own_times, now, record)
    recorder.findings.cores.append(await share_of_core)
    return recorder.findings


def due_times(load: Open, warm_up: float, seed: int) -> list[float]:
    """Due times for all processes, in seconds from the start of the warm-up, which runs at the first rate."""
    first = load.rates[0].begin
    pieces = (Piece(warm_up, first, first), *load.rates)
    return [float(at) for at in arrivals(pieces, load.spacing, load.variation, seed)]


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


def _workload(plan: Plan, model: TargetModel, index: int) -> Workload:
    if isinstance(model, ImageModel):
        return vision.workload(plan, model, index)
    return oip.workload(model, index, plan.seed)


def _loop(plan: Plan) -> asyncio.AbstractEventLoop:
    if plan.raw_client and isinstance(plan.load, Closed):
        import uvloop  # noqa: PLC0415  likewise

        return uvloop.new_event_loop()  # type: ignore[no-any-return]
    # select, not epoll: asyncio rounds epoll's timeouts up to a millisecond, which would delay every request. So does
    # uvloop, whose clock has no finer steps.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _run(plan: Plan, workloads: list[Workload], share: int, start: Callable[[], float]) -> Findings:
    async with _sends(plan, workloads) as sends:
        send = weighted(sends, [model.weight for model in plan.models], plan.seed)
        begin = await asyncio.get_running_loop().run_in_executor(None, start)
        await asyncio.sleep(begin - time.monotonic())
        return await drive(plan, send, share, lambda: time.monotonic() - begin)


@asynccontextmanager
async def _sends(plan: Plan, workloads: list[Workload]) -> AsyncIterator[list[Send]]:
    """What sends the requests to each model, over one connection."""
    server, deadline = plan.server, plan.deadline
    if plan.raw_client:
        from convoy.service.bench import raw_client  # noqa: PLC0415  it needs cffi, which the other client does without

        client = raw_client.RawClient(server, deadline)
        yield [
            raw_client.unary(client, workload, model, server=server, deadline=deadline)
            for model, workload in enumerate(workloads)
        ]
        client.close()
        return
    async with connect(server, plan.credentials) as channel:
        common: dict[str, Any] = {"server": server, "deadline": deadline, "metadata": plan.credentials.metadata()}

        def sender(model: int, workload: Workload) -> Send:
            if plan.stream:
                return Streamed(channel, workload, model, **common).send
            return unary(channel, workload, model, **common)

        yield [sender(model, workload) for model, workload in enumerate(workloads)]


def _start_time() -> float:
    print("ready", flush=True)
    begin = float(sys.stdin.buffer.readline() or sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return begin


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
