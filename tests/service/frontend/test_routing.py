"""Requests go where they are done first: on a virtual clock, beside sending them in turn and at random."""

import heapq
import itertools
import random
from collections.abc import Callable

import pytest

from convoy.service.frontend import routing
from convoy.service.frontend.routing import Engine, Engines, Load, Served, choose
from convoy.service.ipc.channel import Answer, Cancel, Request, Times
from convoy.service.repository import State, Table, Version

LETTERS = ("letters", 1)
BYTES = 1000  # of a request's input
MOST = 16  # requests of a batch
OBJECTIVE = 0.1  # seconds
REQUESTS = 20_000


class Told(Load):
    """The load of an engine that says with its answers what it has from other front ends."""

    others = 0.0

    def seconds(self, served: Served, nbytes: int, guess: float) -> float:
        return self.others + super().seconds(served, nbytes, guess)


class Device:
    """Runs what waits in batches, whose first image takes `base` seconds more than each, for some front ends."""

    def __init__(self, base: float, each: float) -> None:
        self.base, self.each = base, each
        self.waiting: list[tuple[float, int]] = []  # arrivals, and from which front end
        self.running: list[tuple[float, int]] = []
        self.began = 0.0
        self.loads: list[Load] = []  # as each front end sees it

    @property
    def capacity(self) -> float:
        return MOST / (self.base + MOST * self.each)

    def start(self, now: float) -> float:
        """When the batch ends that begins now."""
        self.began = now
        self.running, self.waiting = self.waiting[:MOST], self.waiting[MOST:]
        return now + self.base + len(self.running) * self.each

    def end(self, now: float) -> list[float]:
        """Latencies of the batch that ends now."""
        for _, source in self.running:
            self.loads[source].learn(LETTERS, self.began, now, BYTES * len(self.running))
            self.loads[source].end(LETTERS, BYTES)
        for source in {source for _, source in self.running}:
            own = self.loads[source]
            if isinstance(own, Told):
                others = [load.requests for load in self.loads if load is not own]
                own.others = sum(others) * BYTES * own.paces[LETTERS]
        ran, self.running = self.running, []
        return [now - arrived for arrived, _ in ran]


Choose = Callable[[list[Device], int, int], Device]


def shortest(devices: list[Device], turn: int, source: int) -> Device:
    loads = [device.loads[source] for device in devices]
    return devices[loads.index(choose(loads, LETTERS, BYTES, turn))]


def in_turn(devices: list[Device], turn: int, source: int) -> Device:
    return devices[turn % len(devices)]


def at_random(seed: int) -> Choose:
    generator = random.Random(seed)
    return lambda devices, turn, source: generator.choice(devices)


def serve(
    devices: list[Device], pick: Choose, share: float, front_ends: int = 1, kind: type[Load] = Load
) -> list[float]:
    """The latencies of Poisson arrivals at such a share of what all devices can do, ascending."""
    generator, latencies = random.Random(1), list[float]()
    for device in devices:
        device.loads = [kind() for _ in range(front_ends)]
    rate = share * sum(device.capacity for device in devices)
    order = itertools.count()
    events: list[tuple[float, int, Device | None]] = [(0.0, next(order), None)]
    turns = [0] * front_ends
    while events:
        now, _, device = heapq.heappop(events)
        if device is None:
            if sum(turns) < REQUESTS:
                heapq.heappush(events, (now + generator.expovariate(rate), next(order), None))
            source = generator.randrange(front_ends)
            turns[source] += 1
            device = pick(devices, turns[source], source)
            device.loads[source].add(LETTERS, BYTES)
            device.waiting.append((now, source))
        else:
            latencies += device.end(now)
        if not device.running and device.waiting:
            heapq.heappush(events, (device.start(now), next(order), device))
    return sorted(latencies)


def p99(latencies: list[float]) -> float:
    return latencies[len(latencies) * 99 // 100]


def goodput(latencies: list[float]) -> float:
    return sum(latency <= OBJECTIVE for latency in latencies) / len(latencies)


def unequal(base: float = 0.005) -> list[Device]:
    """One twice as fast as the other; where `base` is 0, batches bring nothing."""
    return [Device(2 * base, 0.002), Device(base, 0.001)]


@pytest.mark.simulation
@pytest.mark.parametrize("base", [0.0, 0.005])
@pytest.mark.parametrize("share", [0.5, 0.85, 0.95])
def test_unequal_devices_answer_sooner_than_in_turn_and_at_random(base: float, share: float) -> None:
    ours = serve(unequal(base), shortest, share)
    for other in (in_turn, at_random(7)):
        theirs = serve(unequal(base), other, share)
        assert p99(ours) < 0.9 * p99(theirs)
        assert goodput(ours) >= goodput(theirs)
    assert goodput(ours) > 0.98


@pytest.mark.simulation
def test_goodput_of_unequal_devices_is_kept_where_turns_lose_a_third_of_it() -> None:
    assert goodput(serve(unequal(), in_turn, 0.85)) < 0.67
    assert goodput(serve(unequal(), shortest, 0.85)) > 0.999


@pytest.mark.simulation
def test_equal_devices_answer_about_as_soon_as_in_turn() -> None:
    # Nobody knows how far a running batch is, and turns space the arrivals of each device evenly.
    def devices() -> list[Device]:
        return [Device(0.005, 0.001) for _ in range(3)]

    for share in (0.3, 0.9):
        assert p99(serve(devices(), shortest, share)) <= 1.05 * p99(serve(devices(), in_turn, share))


@pytest.mark.simulation
@pytest.mark.parametrize(("front_ends", "longer"), [(2, 1.06), (4, 1.15), (8, 1.3)])
def test_front_ends_that_know_of_their_own_requests_only_lose_little(front_ends: int, longer: float) -> None:
    for share in (0.5, 0.85, 0.95):
        one, several = serve(unequal(), shortest, share), serve(unequal(), shortest, share, front_ends)
        assert p99(several) < longer * p99(one)
        assert goodput(several) > goodput(one) - 0.005


@pytest.mark.simulation
def test_an_engines_word_of_the_others_is_too_old_to_help() -> None:
    """Why there is none: with it, equal devices answer later."""

    def devices() -> list[Device]:
        return [Device(0.005, 0.001) for _ in range(4)]

    for front_ends in (2, 4):
        told = serve(devices(), shortest, 0.85, front_ends, Told)
        assert p99(told) > 1.05 * p99(serve(devices(), shortest, 0.85, front_ends))


def test_engines_never_differ_by_more_than_one_request() -> None:
    """Without batches, and once the times are known."""
    loads, paces, generator = [Load() for _ in range(4)], (1e-6, 1e-6, 2e-6, 5e-6), random.Random(3)
    for load, pace in zip(loads, paces, strict=True):
        load.paces[LETTERS] = pace
    largest = 0
    for turn in range(1, routing._TRIAL):
        nbytes = generator.randint(1, 5000)
        largest = max(largest, nbytes)
        chosen = choose(loads, LETTERS, nbytes, turn)
        chosen.add(LETTERS, nbytes)
        ends = [load.seconds(LETTERS, 0, 0.0) for load in loads]
        for end, pace in zip(ends, paces, strict=True):
            assert chosen.seconds(LETTERS, 0, 0.0) <= end + nbytes * pace + 1e-9
    assert max(ends) - min(ends) <= largest * max(paces) + 1e-9


def test_of_equal_engines_the_one_with_the_fewest_requests_is_chosen_then_each_in_turn() -> None:
    loads = [Load() for _ in range(3)]
    turns = [loads.index(choose(loads, LETTERS, BYTES, turn)) for turn in range(1, 7)]
    assert turns == [0, 1, 2, 0, 1, 2]
    loads[0].add(LETTERS, 0)  # takes no time, but it is one
    assert [loads.index(choose(loads, LETTERS, BYTES, turn)) for turn in range(7, 11)] == [1, 2, 1, 2]


def test_work_of_another_model_counts_by_its_own_pace() -> None:
    loads = [Load(), Load()]
    for load in loads:
        load.paces = {LETTERS: 1e-6, ("scenes", 1): 1e-3}
    loads[0].add(("scenes", 1), 100)
    for _ in range(5):
        loads[1].add(LETTERS, BYTES)
    assert choose(loads, LETTERS, BYTES, 1) is loads[1]


def test_an_engine_that_has_not_run_a_model_is_taken_to_be_as_fast_as_the_fastest() -> None:
    loads = [Load(), Load()]
    loads[0].paces[LETTERS] = 1e-3
    loads[0].add(LETTERS, BYTES)
    chosen = [loads.index(choose(loads, LETTERS, BYTES, 1))]
    loads[1].add(LETTERS, BYTES)
    chosen.append(loads.index(choose(loads, LETTERS, BYTES, 2)))
    assert chosen == [1, 0]  # not all to the one of which nothing is known


def test_one_stall_does_not_send_everybody_away() -> None:
    load = Load()
    for batch in range(1, 30):
        load.learn(LETTERS, batch, batch + 0.001, BYTES)
    load.learn(LETTERS, 1 << 40, (1 << 40) + 10.0, BYTES)
    assert load.paces[LETTERS] == pytest.approx(1.1e-6)
    for batch in range(30, 60):  # one that stays slow is soon known for it
        load.learn(LETTERS, batch, batch + 0.004, BYTES)
    assert load.paces[LETTERS] > 3.5e-6


def test_a_batch_teaches_once() -> None:
    load = Load()
    load.learn(LETTERS, 1, 1.001, BYTES)
    for _ in range(100):
        load.learn(LETTERS, 2, 2.002, BYTES)
    assert load.paces[LETTERS] == pytest.approx(1.1e-6)


def faster_again(turns: int) -> int:
    """An engine was slow and has become as fast as the other: requests, one at a time, that go to it meanwhile."""
    loads = [Load(), Load()]
    loads[0].paces[LETTERS], loads[1].paces[LETTERS] = 1e-6, 20e-6
    went = 0
    for turn in range(1, turns):
        chosen = choose(loads, LETTERS, BYTES, turn)
        went += chosen is loads[1]
        chosen.learn(LETTERS, turn, turn + 0.001, BYTES)
    return went


def test_an_engine_that_has_become_faster_is_found_out_at_few_requests_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 40 <= faster_again(routing._TRIAL * 50) <= 50 + routing._TRIAL
    monkeypatch.setattr(routing, "_TRIAL", 1 << 40)
    assert faster_again(10_000) == 0  # the control: without trials it is never asked again


def test_an_engine_that_died_has_nothing_to_do() -> None:
    loads = [Load(), Load()]
    for load in loads:
        load.paces[LETTERS] = 1e-6
        load.add(LETTERS, BYTES)
    loads[1].forget()
    assert (loads[1].requests, loads[1].seconds(LETTERS, 0, 0.0)) == (0, 0.0)
    assert choose(loads, LETTERS, BYTES, 1) is loads[1]


def row(version: int, state: State = "READY") -> Version:
    return Version(model="letters", version=version, state=state)


class Line:
    """A wire that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, records: object) -> None:
        self.sent.append(records)


def test_records_for_an_engine_that_is_not_connected_are_dropped() -> None:
    engine = Engine(0)
    engine.send([Cancel(1)])
    engine.wire = line = Line()  # type: ignore[assignment]
    engine.send([])
    engine.send([Cancel(2)])
    assert line.sent == [[Cancel(2)]]


def test_version_stays_runnable_after_its_row_has_gone() -> None:
    """Retired versions still run what was sent to them."""
    engine = Engine(0)
    engine.update(Table((row(1), row(2, "LOADING")), complete=False))
    assert (engine.runnable, engine.complete) == ({("letters", 1)}, False)
    engine.update(Table((row(2),), complete=True))
    assert (engine.runnable, engine.complete) == ({("letters", 1), ("letters", 2)}, True)
    engine.lose()
    assert (engine.runnable, engine.complete, engine.lost) == (set(), False, True)


def test_table_of_the_previous_process_stays_until_the_next_one_has_read_everything_or_has_a_problem() -> None:
    engine = Engine(0)
    before = Table((row(1),), complete=True)
    engine.update(before)
    engine.lose()
    engine.update(Table((), complete=False))
    assert (engine.table, engine.lost) == (before, True)
    engine.update(Table((), complete=False, problem="no repository"))
    assert engine.table is not None
    assert engine.table.problem == "no repository"
    assert engine.lost
    engine.update(Table((), complete=True))
    assert (engine.table, engine.lost) == (Table((), complete=True), False)


def test_lost_engine_is_dropped_only_where_another_serves() -> None:
    engines = Engines((3, 4))
    first, second = engines.by_device.values()
    assert not engines.drop_lost()  # none is lost
    first.lose()
    assert engines.lost == [3]
    assert not engines.drop_lost()  # the other has not loaded anything
    second.update(Table((row(1),), complete=True))
    assert not engines.settled
    assert engines.drop_lost()
    assert (first.table, engines.settled, engines.table().versions) == (None, True, (row(1),))
    first.update(Table((), complete=False))
    assert first.table is None  # it counts again once it has loaded everything


def test_engines_are_connected_if_any_is() -> None:
    engines = Engines((0, 1))
    assert not engines.connected
    engines.by_device[1].wire = Line()  # type: ignore[assignment]
    assert engines.connected


def test_request_goes_to_an_engine_that_has_its_version_and_counts_there_until_it_ends() -> None:
    engines = Engines((0, 1))
    request = Request(1, 0, 2, 0.0, model="letters", version=1)
    assert engines.choose(request, BYTES) is None
    engines.by_device[1].runnable = {LETTERS}
    chosen = [engines.choose(request, BYTES) for _ in range(2)]
    engine = engines.by_device[1]
    assert chosen == [engine, engine]
    assert (engine.load.requests, engine.load.seconds(LETTERS, 0, 1e-6)) == (2, pytest.approx(2e-6 * BYTES))
    answer = Answer(1, 4, Times(1.0, 0, 0, 1.004), ())
    engines.learn(engine, request, BYTES, answer)  # a batch of four rows has twice the bytes of this request
    assert engine.load.paces[LETTERS] == pytest.approx(0.004 / (2 * BYTES))
    engines.end(engine, request, BYTES)
    engines.end(None, request, BYTES)  # it never reached one
    assert engine.load.requests == 1
    engines.end(engine, request, BYTES)
    assert (engine.load.requests, engine.load.seconds(LETTERS, 0, 1e-6)) == (0, 0)


def test_only_engine_is_chosen_where_it_has_the_version() -> None:
    engines = Engines((5,))
    request = Request(1, 0, 1, 0.0, model="letters", version=1)
    assert engines.choose(request, BYTES) is None
    engines.by_device[5].runnable = {LETTERS}
    assert engines.choose(request, BYTES) is engines.by_device[5]


def test_idle_engines_are_chosen_for_a_trial_once_in_so_many_requests() -> None:
    loads = [Load(), Load()]
    loads[0].paces[LETTERS], loads[1].paces[LETTERS] = 1e-6, 20e-6
    turns = [turn for turn in range(1, 2 * routing._TRIAL + 1) if choose(loads, LETTERS, BYTES, turn) is loads[1]]
    assert turns == [routing._TRIAL, 2 * routing._TRIAL]


def test_engines_of_equal_pace_take_turns_through_many_requests() -> None:
    engines = Engines((0, 1))
    for engine in engines.by_device.values():
        engine.runnable = {LETTERS}
    request = Request(1, 0, 1, 0.0, model="letters", version=1)
    chosen = []
    for _ in range(6):
        engine = engines.choose(request, BYTES)
        assert engine is not None
        chosen.append(engine.device)
        engines.end(engine, request, BYTES)
    assert chosen == [0, 1, 0, 1, 0, 1]


def test_work_of_a_lost_engine_counts_no_more() -> None:
    engines = Engines((0, 1))
    engine = engines.by_device[0]
    engine.runnable = {LETTERS}
    engines.choose(Request(1, 0, 1, 0.0, model="letters", version=1), BYTES)
    engine.lose()
    assert (engine.load.requests, engine.load.seconds(LETTERS, 0, 1e-6)) == (0, 0)


def test_pace_of_inputs_without_bytes_is_known_as_if_they_had_one() -> None:
    load = Load()
    load.learn(LETTERS, 1.0, 1.5, 0)
    assert load.paces[LETTERS] == 0.5


def test_engine_of_unknown_pace_is_taken_to_be_as_fast_as_the_fastest_of_several() -> None:
    loads = [Load(), Load(), Load()]
    loads[0].paces[LETTERS], loads[1].paces[LETTERS] = 1e-3, 1e-6
    for _ in range(3):
        loads[1].add(LETTERS, BYTES)
    loads[2].add(LETTERS, BYTES)
    assert choose(loads, LETTERS, BYTES, 1) is loads[2]  # 2 ms as the fastest; it would take 2 s as the slowest
