"""One client process's share of a load test: every n-th request, on one connection and one event loop."""

import asyncio
import itertools
import selectors
from collections.abc import Callable
from functools import partial

from convoy.service.bench import oip, vision
from convoy.service.bench.arrivals import Piece, arrivals
from convoy.service.bench.asking import Question, connect, sender, unary
from convoy.service.bench.drive import Now, Sample, Send, busy, closed_loop, lateness, open_loop
from convoy.service.bench.findings import Findings, Recorder
from convoy.service.bench.plan import AskedModel, Closed, ImageModel, Open, Plan, edges
from convoy.service.bench.streaming import Streamed

_TICK = 0.01  # seconds between two measurements of how late a closed loop's event loop is


def run(plan: Plan, share: int, start: Callable[[], float]) -> Findings:
    """Send this share (0 to plan.processes - 1) of the requests. Blocks until all are answered or their time is up.

    start  called when everything is prepared; returns when to begin, by CLOCK_MONOTONIC
    """
    questions = [_question(plan, model, place) for place, model in enumerate(plan.models)]
    # select, not epoll: asyncio rounds epoll's timeouts up to a millisecond, which would delay every request.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(_run(plan, questions, share, start))


async def drive(plan: Plan, send: Send, share: int, now: Now) -> Findings:
    """Like `run`, with a given `send`; `now` is in seconds since the start of the warm-up."""
    recorder = Recorder(len(plan.models), edges(plan.load.pieces()), plan.warm_up)
    end = plan.warm_up + plan.load.seconds
    share_of_core = asyncio.create_task(busy(plan.warm_up, end, now))
    match plan.load:
        case Closed(callers=callers):
            numbers = itertools.count(share, plan.processes)
            own = len(range(share, callers, plan.processes))
            await asyncio.gather(
                closed_loop(send, numbers, own, end, now, recorder.note), lateness(_TICK, end, now, recorder.late)
            )
        case Open() as load:
            times = due_times(load, plan.warm_up, plan.seed)

            def note(sample: Sample) -> None:
                recorder.note(sample)
                recorder.late(sample.due, sample.sent - sample.due)

            own_times = itertools.islice(enumerate(times), share, None, plan.processes)
            await open_loop(send, own_times, now, note)
    recorder.findings.cores.append(await share_of_core)
    return recorder.findings


def due_times(load: Open, warm_up: float, seed: int) -> list[float]:
    """Due times for all processes, in seconds from the start of the warm-up, which runs at the first rate."""
    first = load.rates[0].begin
    pieces = (Piece(warm_up, first, first), *load.rates)
    return [float(at) for at in arrivals(pieces, load.spacing, load.variation, seed)]


def _question(plan: Plan, model: AskedModel, place: int) -> Question:
    if isinstance(model, ImageModel):
        return vision.question(plan, model, place)
    return oip.question(model, place, plan.seed)


def _way(plan: Plan) -> Callable[..., Send]:
    if not plan.stream:
        return unary
    return lambda channel, question, model, **told: Streamed(channel, question, model, **told).ask


async def _run(plan: Plan, questions: list[Question], share: int, start: Callable[[], float]) -> Findings:
    loop = asyncio.get_running_loop()
    weights = [model.weight for model in plan.models]
    async with connect(plan.server) as channel:
        way = partial(_way(plan), server=plan.server, deadline=plan.deadline)
        send = sender([way(channel, question, model) for model, question in enumerate(questions)], weights, plan.seed)
        begin = await loop.run_in_executor(None, start)
        await asyncio.sleep(begin - loop.time())
        return await drive(plan, send, share, lambda: loop.time() - begin)
