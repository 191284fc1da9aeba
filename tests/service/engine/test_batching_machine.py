"""Whatever comes, goes, ends and is forgotten in whatever order: what the batcher promises holds after every step."""

import math
from collections.abc import Hashable

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from convoy.service.engine.scheduler.batcher import Batch, Batcher, Decision, Id
from convoy.service.engine.scheduler.request_queue import Key, Limits, Queue, due_time
from convoy.service.errors import PredictedLate, QueueFull
from convoy.service.ipc.channel import Request

KEYS = (Key("model", 1, ((32, 32, 1),)), Key("model", 1, ((64, 64, 1),)), Key("other", 1, ((32, 32, 1),)))
LIMITS = Limits(max_batch_size=8, max_queue_delay=0.004, max_queue=24)
SECONDS = {size: 0.005 + 0.001 * size for size in (1, 2, 4, 8)}
# Batches that may start before one that is overdue: what was due before it, in each model's queues one by one.
PATIENCE = 2 * LIMITS.max_queue


class Scheduling(RuleBasedStateMachine):
    """A batcher on a virtual clock, beside a plain record of what waits and what runs."""

    def __init__(self, batcher: type[Batcher] = Batcher) -> None:
        super().__init__()
        self._make = batcher
        self.now = 0.0
        self.count = 0
        self.waiting: dict[Hashable, tuple[Key, Request]] = {}
        self.running: list[tuple[float, Batch]] = []
        self.passed_over: dict[Hashable, int] = {}  # batches that have started since a request was overdue
        self.ended: set[Hashable] = set()

    @initialize(lanes=st.integers(1, 3), known=st.booleans())
    def start(self, lanes: int, known: bool) -> None:
        self.batcher = self._make(lanes)
        for key in KEYS if known else ():
            self.batcher.measured(key, LIMITS, SECONDS)

    @rule(
        key=st.sampled_from(KEYS),
        rows=st.sampled_from((1, 1, 1, 2, 5, 8, 12)),
        left=st.none() | st.floats(0, 0.2),
        low=st.booleans(),
        source=st.integers(0, 2),
        following=st.integers(0, 2),
        company=st.integers(1, 3),
    )
    def add(
        self, key: Key, rows: int, left: float | None, low: bool, source: int, following: int, company: int
    ) -> None:
        self.count += 1
        deadline = math.inf if left is None else self.now + left
        one = Request(self.count, source, rows, self.now, deadline, low_priority=low)
        self.batcher.expect(key.model, source, following, company, self.now)
        try:
            self.batcher.add(key, one, LIMITS, self.now)
            self.waiting[one.id] = key, one
        except QueueFull:
            pass
        except PredictedLate:
            assert left is not None, "only a deadline can be missed"

    @rule(seconds=st.sampled_from((0.0, 0.0005, 0.004, 0.02, 0.3)))
    def wait(self, seconds: float) -> None:
        self._pass(seconds)

    @rule()
    def ask(self) -> None:
        self._ask()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, self.count + 1))
        source = self.waiting[number][1].source if number in self.waiting else 0
        gone = self.batcher.cancel((source, number))
        assert (gone is not None) == (number in self.waiting)
        if gone is not None:
            self._end(gone)

    @rule(source=st.integers(0, 2))
    def forget(self, source: int) -> None:
        gone = self.batcher.forget(source)
        assert {one.id for one in gone} == {one.id for _, one in self.waiting.values() if one.source == source}
        for one in gone:
            self._end(one)

    @rule(key=st.sampled_from(KEYS), turns=st.integers(30, 90))
    def flood(self, key: Key, turns: int) -> None:
        """More than the device can do, for a while."""
        for _ in range(turns):
            for _ in range(4):
                self.add(key, 4, None, False, 0, 0, 2)
            self._ask()
            self._pass(0.02)

    @invariant()
    def counts_agree(self) -> None:
        if not self.count:
            return  # the batcher may not even be there
        assert len(self.batcher) == len(self.waiting)
        for model in ("model", "other"):
            rows = sum(one.rows for key, one in self.waiting.values() if key.model == model)
            assert self.batcher.waiting(model) == rows

    def teardown(self) -> None:
        """Nothing more comes: all that waits runs or is late."""
        if not self.count:
            return
        for model in ("model", "other"):
            for source in range(3):
                self.batcher.expect(model, source, 0, 0, self.now)
        for _ in range(len(self.waiting) + len(self.running)):
            self._pass(0.1)
            self._ask()
        assert not self.waiting

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for end, batch in [each for each in self.running if each[0] <= self.now]:
            self.running.remove((end, batch))
            self.batcher.ended(batch, [(batch.rows, SECONDS[1] + 0.001 * (batch.rows - 1))])

    def _ask(self) -> None:
        while True:
            decision = self.batcher.next(self.now)
            for gone in decision.late:
                assert gone.deadline < math.inf
                self._end(gone)
            if decision.batch is None:
                break
            self._take(decision.batch)
        assert decision.again > self.now
        assert all(one.deadline > self.now for _, one in self.waiting.values())

    def _take(self, batch: Batch) -> None:
        assert batch.requests
        assert batch.rows <= LIMITS.max_batch_size or len(batch.requests) == 1
        for one in batch.requests:
            key, known = self.waiting[one.id]
            assert (key, known.rows) == (batch.key, one.rows)
            assert known.deadline >= batch.ends - 1e-9, "it would end late by the batcher's own prediction"
            self._end(known)
        last = max(due_time(one, LIMITS.objective) for one in batch.requests)
        left = [due_time(one, LIMITS.objective) for key, one in self.waiting.values() if key == batch.key]
        assert last <= min(left, default=math.inf), "something due earlier was left behind"
        for key, one in self.waiting.values():
            overdue = self.now > due_time(one, LIMITS.objective) + 2 * SECONDS[8]
            if one.deadline == math.inf and key != batch.key and overdue:
                passed = self.passed_over[one.id] = self.passed_over.get(one.id, 0) + 1
                assert passed <= PATIENCE, "it starves"
        self.running.append((self.now + SECONDS[1] + 0.001 * (batch.rows - 1), batch))

    def _end(self, one: Request) -> None:
        assert one.id not in self.ended
        self.ended.add(one.id)
        del self.waiting[one.id]


PLAIN = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_promises_hold_whatever_happens() -> None:
    run_state_machine_as_test(Scheduling, settings=PLAIN)


class Losing(Batcher):
    """Who cancels takes a neighbour along."""

    def cancel(self, id_: Id) -> Request | None:
        gone = super().cancel(id_)
        if gone is not None and self._places:
            self._remove(next(iter(self._places)))
        return gone


class Repeating(Batcher):
    """Hands a batch out twice."""

    last: Batch | None = None

    def next(self, now: float) -> Decision:
        decision = super().next(now)
        again, self.last = self.last, decision.batch
        return decision._replace(batch=again) if again is not None and decision.batch is None else decision


class Hopeful(Batcher):
    """Chooses as if a batch started 20 ms earlier than it does."""

    def _start(self, queue: Queue, requests: list[Request], now: float) -> Batch:
        return super()._start(queue, requests, now + 0.02)


class Unordered(Batcher):
    """Takes high priority for low."""

    def add(self, key: Key, request: Request, limits: Limits, now: float) -> None:
        super().add(key, msgspec.structs.replace(request, low_priority=not request.low_priority), limits, now)


class Starving(Batcher):
    """The queue in which something has begun to wait last goes first."""

    def _candidate(self, now: float) -> tuple[Queue | None, float]:
        return list(self._active.values())[-1], now


@pytest.mark.parametrize("broken", [Losing, Repeating, Hopeful, Unordered, Starving])
def test_broken_batcher_is_caught(broken: type[Batcher]) -> None:
    quick = settings(PLAIN, phases=[Phase.generate], max_examples=300, report_multiple_bugs=False)
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(lambda: Scheduling(broken), settings=quick)
