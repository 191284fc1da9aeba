import asyncio
import itertools

import pytest

from convoy.service.bench.client import busy, closed_loop, lateness, open_loop
from convoy.service.bench.findings import Sample
from tests.service.bench.clocks import ANSWERED, now, one_at_a_time, run


def closed(send, callers, seconds):
    samples = []
    run(lambda: closed_loop(send, itertools.count(), callers, seconds, now, samples.append))
    return sorted(samples)


def opened(send, due):
    samples = []
    run(lambda: open_loop(send, enumerate(due), now, samples.append))
    return sorted(samples)


def test_closed_loop_keeps_each_caller_waiting_for_its_answer():
    samples = closed(one_at_a_time(0.01), callers=4, seconds=1.0)
    assert len(samples) == pytest.approx(103, abs=1)  # 1 s of one after the other, and those under way at its end
    in_the_middle = [sample.finished - sample.sent for sample in samples if 0.1 < sample.sent < 0.9]
    assert in_the_middle == pytest.approx([0.04] * len(in_the_middle))  # three ahead of it


def test_open_loop_sends_when_due_whatever_is_unanswered():
    samples = opened(one_at_a_time(10.0), [0.0, 0.1, 0.2])
    assert [sample.sent for sample in samples] == pytest.approx([0.0, 0.1, 0.2])
    assert [sample.finished for sample in samples] == pytest.approx([10.0, 20.0, 30.0])


def test_open_loop_counts_latency_from_when_a_request_was_due():
    async def stalls(number):
        if number == 0:
            asyncio.get_running_loop().now += 1.0  # the generator itself stands still for a second
        return ANSWERED

    samples = opened(stalls, [0.0, 0.1, 0.2])
    assert [sample.finished - sample.due for sample in samples] == pytest.approx([1.0, 0.9, 0.8])
    assert samples[2].sent - samples[2].due == pytest.approx(0.8)


def share_beyond(samples: list[Sample], seconds):
    return sum(sample.finished - sample.due > seconds for sample in samples) / len(samples)


def test_stall_of_the_server_is_seen_in_an_open_loop_and_hardly_in_a_closed_one():
    """A server that answers in a millisecond and stands still for one second of ten. Requests that come in that second
    wait half of it on average; a lone caller, who waits for each answer, meets the stall in one request of thousands.
    """
    stalled = opened(one_at_a_time(0.001, stall=(4.0, 5.0)), [place / 100 for place in range(1000)])
    alone = closed(one_at_a_time(0.001, stall=(4.0, 5.0)), callers=1, seconds=10.0)
    assert share_beyond(stalled, 0.1) == pytest.approx(0.09, abs=0.02)
    assert share_beyond(alone, 0.1) < 0.001
    steady = opened(one_at_a_time(0.001), [place / 100 for place in range(1000)])
    assert share_beyond(steady, 0.1) == 0


def test_requests_get_the_numbers_in_the_order_they_are_sent():
    numbers = []

    async def send(number):
        numbers.append(number)
        await asyncio.sleep(0.1)
        return ANSWERED

    run(lambda: closed_loop(send, itertools.count(1, 2), 3, 0.25, now, lambda sample: None))
    assert numbers == list(range(1, 18, 2))


def test_lateness_is_that_of_everything_that_was_due_while_the_loop_stood_still():
    found = []

    async def stand_still():
        await asyncio.sleep(0.25)
        asyncio.get_running_loop().now += 0.3

    async def both():
        await asyncio.gather(lateness(0.1, 1.0, now, lambda due, late: found.append((due, late))), stand_still())

    run(both)
    assert [due for due, _ in found] == pytest.approx([place / 10 for place in range(1, 10)])
    late = {round(due, 1): late for due, late in found}
    assert (late[0.2], late[0.9]) == (pytest.approx(0), pytest.approx(0))
    assert (late[0.3], late[0.4], late[0.5]) == (pytest.approx(0.25), pytest.approx(0.15), pytest.approx(0.05))


@pytest.mark.alone
def test_busy_tells_the_share_of_a_core():
    async def spin_or_sleep(spins):
        start = now()
        until = start + 0.2
        measured = asyncio.create_task(busy(start, until, now))
        await asyncio.sleep(0)
        if spins:
            sum(1 for _ in itertools.takewhile(lambda _: now() < until, itertools.count()))
        return await measured

    # A machine that stands still takes the core from one that spins, and other threads add to one that sleeps.
    asleep = min(asyncio.run(spin_or_sleep(spins=False)) for _ in range(3))
    assert asleep < 0.2
    assert max(asyncio.run(spin_or_sleep(spins=True)) for _ in range(5)) > asleep + 0.1
