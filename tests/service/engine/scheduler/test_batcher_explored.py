"""Every order in which few requests come, go, run and end: what the batcher promises holds after each event."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import pytest

from convoy.service.engine.scheduler.batcher import Batch, Batcher
from convoy.service.engine.scheduler.policies import POLICIES
from convoy.service.engine.scheduler.request_queue import Key, Limits, Queue
from convoy.service.errors import PredictedLate
from convoy.service.ipc.channel import Request
from tests.service.engine.test_batching_machine import Losing
from tests.service.exploring import Event, explore

# Two versions of one model and another model: none of them shares a batch.
KEYS = (Key("model", 1, ()), Key("model", 2, ()), Key("other", 1, ()))
SECONDS = {1: 0.006, 2: 0.008, 4: 0.012}
DEADLINES = (math.inf, 0.007, 0.015)  # after the arrival: never, for one that runs at once, for one that waits once
LIMITS = Limits(max_batch_size=2, max_queue_delay=0.004, max_queue=10)
STEP = 0.004  # seconds between two events at most


class Scheduling:
    """A device, and requests each of one key and with one deadline. Time passes as an event of its own.

    As an engine does, it asks the batcher what to do after every event.
    """

    def __init__(self, requests: int, limits: Limits, keys: Sequence[Key], batcher: Callable[[], Batcher]) -> None:
        self.left = requests
        self.keys = keys
        self.limits = limits
        self.batcher = batcher()
        for key in keys:
            self.batcher.measured(key, limits, SECONDS)
        self.now = 0.0
        self.again = math.inf
        self.count = 0
        self.waiting: dict[Hashable, tuple[Key, Request]] = {}
        self.running: list[Batch] = []

    def events(self) -> list[Event]:
        found: list[Event] = []
        if self.left:
            found += [("come", key, after) for key, after in product(range(len(self.keys)), DEADLINES)]
        found += [("cancel", number) for number in self.waiting]
        found += [("end", place) for place in range(len(self.running))]
        if self.again < math.inf and not self.running:
            found.append(("wait",))
        if self.running and max(batch.ends for batch in self.running) > self.now:
            found.append(("wait",))
        return found

    def do(self, event: Event) -> None:
        name, *rest = event
        getattr(self, f"_{name}")(*rest)
        self._ask()

    def _come(self, place: int, after: float) -> None:
        self.left -= 1
        self.count += 1
        key, request = self.keys[place], Request(self.count, 0, 1, self.now, self.now + after)
        self.batcher.expect(key.model, 0, min(1, self.left), len(self.waiting) + 1, self.now)
        try:
            self.batcher.add(key, request, self.limits, self.now)
        except PredictedLate:
            assert after < math.inf, "only a deadline can be missed"
            assert self.waiting or self.running or after < SECONDS[1], "an idle device refuses what it can do in time"
        else:
            self.waiting[self.count] = key, request

    def _cancel(self, number: int) -> None:
        _, request = self.waiting.pop(number)
        assert self.batcher.cancel((0, number)) is request
        assert self.batcher.cancel((0, number)) is None

    def _end(self, place: int) -> None:
        batch = self.running.pop(place)
        self.batcher.ended(batch, [(batch.rows, SECONDS[batch.rows])])

    def _wait(self) -> None:
        """Until the batcher wants to be asked, but not long: something else may happen before."""
        self.now = min(self.now + STEP, max(self.again, self.now))

    def _ask(self) -> None:
        while True:
            decision = self.batcher.next(self.now)
            for request in decision.late:
                _, known = self.waiting.pop(request.id)
                assert known is request
                assert self.now + SECONDS[1] > request.deadline, "it could be answered in time"
            if decision.batch is None:
                break
            self._take(decision.batch)
        assert decision.again > self.now, "it has to be asked again at once"
        self.again = decision.again

    def _take(self, batch: Batch) -> None:
        assert not self.running or batch.share < 1, "the device is in use"
        assert batch.requests
        assert batch.rows == len(batch.requests) <= self.limits.max_batch_size
        for request in batch.requests:
            key, known = self.waiting.pop(request.id)
            assert known is request
            assert key == batch.key, "a batch mixes models or versions"
            assert request.deadline > self.now
        for key, request in self.waiting.values():
            assert key != batch.key or request.deadline >= max(each.deadline for each in batch.requests)
        self.running.append(batch)

    def check(self) -> None:
        """What holds at any time."""
        assert len(self.batcher) == len(self.waiting), "a request is lost"
        for model in {key.model for key in self.keys}:
            assert self.batcher.waiting(model) == sum(key.model == model for key, _ in self.waiting.values())
        assert all(request.deadline > self.now for _, request in self.waiting.values()), "it waits after its deadline"
        if self.waiting and not self.running:
            assert self.again <= self.now + LIMITS.max_queue_delay + 1e-9, "an idle device lets requests wait too long"

    def finish(self) -> None:
        """Nothing can happen any more: all have ended."""
        assert not self.waiting, "a request waits for ever"
        assert len(self.batcher) == 0
        assert self.batcher._lanes.free == self.batcher._lanes.count, "the device stays in use"

    def key(self) -> Hashable:
        """What has happened counts only by what is left of it, and by what it has taught."""
        past = self.batcher
        return (
            self.left, round(self.now, 6), round(self.again, 6),
            tuple([(key, number, round(each.deadline, 6), round(each.arrived, 6))
                   for number, (key, each) in self.waiting.items()]),
            tuple([(batch.key, batch.rows, round(batch.ends, 6)) for batch in self.running]),
            tuple([(queue.key, queue.batch_size, round(queue.budget, 6), tuple(queue.times.measured.values()),
                    queue.times.margin) for queue in past._queues.values()]),
            tuple([(name, round(each.last, 6), round(each.gap, 6), round(each.long_gap, 6), each.overlapping_until)
                   for name, each in past._callers.items()]),
        )  # fmt: skip

    def close(self) -> None:
        pass


def world(
    requests: int, limits: Limits = LIMITS, keys: Sequence[Key] = KEYS, batcher: Callable[[], Batcher] = Batcher
) -> Callable[[], Scheduling]:
    return partial(Scheduling, requests, limits, keys, batcher)


@pytest.mark.parametrize(("requests", "keys"), [(2, 3), (3, 1)])
def test_promises_hold_in_every_order_of_events(requests: int, keys: int) -> None:
    assert explore(world(requests, keys=KEYS[:keys])).states > 100


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy not in ("deferred", "timeout")])
def test_promises_hold_in_every_order_of_events_under_every_policy(policy: str) -> None:
    explore(world(2, replace(LIMITS, policy=policy), KEYS[:2]))  # type: ignore[arg-type]


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(("requests", "keys"), [(3, 3), (4, 1), (4, 2)])
def test_promises_hold_in_every_order_of_more_events(requests: int, keys: int) -> None:
    print(f"{requests} requests of {keys} kinds: {explore(world(requests, keys=KEYS[:keys]))}")


class Mixing(Batcher):
    """Versions of a model share a queue."""

    def add(self, key: Key, request: Request, limits: Limits, now: float) -> None:
        super().add(key._replace(version=1), request, limits, now)


class Forgetting(Batcher):
    """A lane is not given back."""

    def ended(self, batch: Batch, runs: Sequence[tuple[int, float]]) -> bool:
        free = self._lanes.free
        replaced = super().ended(batch, runs)
        self._lanes.free = free
        return replaced


class Patient(Batcher):
    """Waits after the time at which a batch has to start."""

    def _candidate(self, now: float) -> tuple[Queue | None, float]:
        queue, again = super()._candidate(now)
        return (
            (None, now + 0.02)
            if queue is not None and len(queue) == 1 and queue.head.arrived == now
            else (queue, again)
        )


class Late(Batcher):
    """Requests wait until they have missed their deadline, and longer."""

    def _expired(self, now: float) -> list[Request]:
        return []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Losing, "a request is lost"),
        (Mixing, "a batch mixes models or versions"),
        (Forgetting, "the device stays in use"),
        (Patient, "an idle device lets requests wait too long"),
        (Late, "it has to be asked again at once|it waits after its deadline"),
    ],
)
def test_broken_batcher_is_found(broken: type[Batcher], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        explore(world(3, keys=KEYS[:2], batcher=broken))
