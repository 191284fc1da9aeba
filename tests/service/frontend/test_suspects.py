"""Which requests are guilty of an engine's death, and how long their inputs are refused."""

import os
from collections.abc import Iterator

import pytest

from convoy.service.frontend import suspects
from convoy.service.frontend.suspects import INNOCENT, Quarantine, Suspects, Suspicion, after_death
from convoy.service.ipc.channel import Request
from convoy.service.ipc.slots import Arena

SIDE = 1000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(1 << 20)
    yield made
    os.close(made.descriptor)


def request(arena: Arena, values: list[int], *, apart: bool = True, model: str = "letters", last: int = 0) -> Request:
    """Rows that each contain one value, but for the last byte."""
    _, inputs, _ = arena.claim((("uint8", (len(values), SIDE)),), ())
    array = arena.mapping.array(inputs[0])
    array[...] = [[value] for value in values]
    array[:, -2] += last
    return Request(1, 0, len(values), 0.0, model=model, version=1, inputs=inputs, apart=apart)


def test_request_that_did_not_run_when_the_engine_died_stays_innocent() -> None:
    assert after_death(INNOCENT, 0, from_outside=False) == (INNOCENT, None)
    assert after_death(Suspicion(alone=True), 0, from_outside=False) == (Suspicion(alone=True), None)


def test_request_that_ran_with_others_runs_alone_and_is_guilty_once_it_ended_an_engine_alone() -> None:
    first, guilty = after_death(INNOCENT, 1, from_outside=False)
    assert (first.alone, guilty) == (True, None)
    assert after_death(first, 3, from_outside=False) == (Suspicion(alone=True, skip=(2,)), 2)


def test_engine_killed_by_others_while_a_request_ran_alone_is_a_coincidence_once() -> None:
    alone = Suspicion(alone=True)
    again, guilty = after_death(alone, 1, from_outside=True)
    assert guilty is None
    assert after_death(again, 1, from_outside=True)[1] == 0


def test_refused_row_is_known_in_any_slot_of_its_model_and_version(arena: Arena) -> None:
    quarantine = Quarantine(arena.mapping)
    quarantine.add(request(arena, [5, 6, 7]), 1)
    assert quarantine.check(request(arena, [6])) == (True, (0,))
    assert quarantine.check(request(arena, [1, 2, 6, 6])) == (True, (2, 3))
    assert quarantine.check(request(arena, [5, 7])) == (False, ())
    assert quarantine.check(request(arena, [6], model="other")) == (False, ())


def test_tensor_of_several_rows_is_refused_as_a_whole(arena: Arena) -> None:
    quarantine = Quarantine(arena.mapping)
    quarantine.add(request(arena, [5, 6], apart=False), 0)
    assert quarantine.check(request(arena, [5, 6], apart=False)) == (True, (0,))
    assert quarantine.check(request(arena, [6, 5], apart=False)) == (False, ())


def test_input_that_equals_a_refused_one_only_where_it_is_sampled_is_not_refused(arena: Arena) -> None:
    quarantine = Quarantine(arena.mapping)
    quarantine.add(request(arena, [6]), 0)
    assert quarantine.check(request(arena, [6], last=1)) == (False, ())


def test_input_is_refused_for_a_time(arena: Arena) -> None:
    clock = Clock()
    quarantine = Quarantine(arena.mapping, clock)
    guilty = request(arena, [6])
    quarantine.add(guilty, 0)
    clock.now = 599
    assert quarantine.check(guilty) == (True, (0,))
    clock.now = 600
    assert quarantine.check(guilty) == (False, ())
    assert not quarantine


def test_input_is_refused_that_another_front_end_has_found_guilty(arena: Arena) -> None:
    there, here = Quarantine(arena.mapping), Quarantine(arena.mapping)
    here.refuse(there.add(request(arena, [5, 6]), 1))
    assert here.check(request(arena, [6])) == (True, (0,))
    assert here.check(request(arena, [5])) == (False, ())


def test_suspected_input_runs_alone_until_it_has_run(arena: Arena) -> None:
    quarantine = Quarantine(arena.mapping)
    suspect = request(arena, [6])
    quarantine.suspect(suspect)
    assert quarantine.check(request(arena, [1, 6])) == (True, ())
    quarantine.clear(suspect)
    assert quarantine.check(request(arena, [1, 6])) == (False, ())


def test_table_of_refused_inputs_is_bounded(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "_MOST", 3)
    quarantine = Quarantine(arena.mapping)
    requests = [request(arena, [value]) for value in range(5)]
    for one in requests:
        quarantine.add(one, 0)
        quarantine.suspect(one)
    assert [quarantine.check(one)[1] for one in requests] == [(), (), (0,), (0,), (0,)]


def test_suspected_input_runs_alone_for_a_time(arena: Arena) -> None:
    clock = Clock()
    quarantine = Quarantine(arena.mapping, clock)
    suspect = request(arena, [6])
    quarantine.suspect(suspect)
    clock.now = 59
    assert quarantine.check(suspect) == (True, ())
    clock.now = 60
    assert quarantine.check(suspect) == (False, ())


def test_input_that_is_found_guilty_again_is_refused_for_the_whole_time_again(arena: Arena) -> None:
    clock = Clock()
    quarantine = Quarantine(arena.mapping, clock)
    guilty, other = request(arena, [6]), request(arena, [7])
    quarantine.add(guilty, 0)
    quarantine.add(other, 0)
    clock.now = 500
    quarantine.add(guilty, 0)
    clock.now = 650
    assert quarantine.check(guilty) == (True, (0,))
    assert quarantine.check(other) == (False, ())


class Place:
    """A request's place, as a slot is one."""

    def __init__(self, engine: object = None) -> None:
        self.suspicion = INNOCENT
        self.mark = 0
        self.held = False
        self.engine = engine


def test_request_whose_input_another_front_end_has_found_guilty_may_not_run(arena: Arena) -> None:
    here: Suspects[Place] = Suspects(arena.mapping)
    place, row = Place(), request(arena, [5, 6])
    assert here.check(place, row)
    assert place.suspicion == INNOCENT
    here.refuse(Quarantine(arena.mapping).add(row, 1))
    assert here.check(place, row)  # its other row may
    assert place.suspicion == Suspicion(alone=True, skip=(1,))
    assert not here.check(Place(), request(arena, [6]))


def test_suspicion_stays_with_a_request_though_its_input_is_cleared(arena: Arena) -> None:
    here: Suspects[Place] = Suspects(arena.mapping)
    place, row = Place(), request(arena, [5])
    here.refuse(Quarantine(arena.mapping).add(request(arena, [9]), 0))
    place.suspicion = Suspicion(alone=True, skip=(), kills=1)
    assert here.check(place, row)
    assert place.suspicion == Suspicion(alone=True, kills=1)


def test_answer_clears_the_input_of_a_suspect(arena: Arena) -> None:
    here: Suspects[Place] = Suspects(arena.mapping)
    place, row = Place(), request(arena, [5])
    place.mark = 1
    here.suspect(place, row)
    assert (place.suspicion.alone, place.mark, place.held) == (True, 0, True)
    same = Place()
    here.check(same, row)
    assert same.suspicion.alone
    here.clear(place, row)
    fresh = Place()
    here.check(fresh, row)
    assert not fresh.suspicion.alone


def test_suspects_wait_for_those_without_blame_that_an_engine_has(arena: Arena) -> None:
    here: Suspects[Place] = Suspects(arena.mapping)
    here.resent = {1, 2}
    waiting = {1: Place(engine="one"), 2: Place()}
    assert here.must_wait(waiting)
    del waiting[1]
    assert not here.must_wait(waiting)
    assert here.resent == {2}


def test_held_suspects_are_let_go_once(arena: Arena) -> None:
    here: Suspects[Place] = Suspects(arena.mapping)
    place = Place()
    assert not here.holding
    here.hold(place)
    assert here.holding
    assert (here.let_go(), place.held, here.let_go(), here.holding) == ([place], False, [], False)


def test_requests_of_a_device_are_judged_once(arena: Arena) -> None:
    here: Suspects[Place] = Suspects(arena.mapping)
    place, row = Place(), request(arena, [5])
    place.suspicion, place.mark = Suspicion(alone=True), 1
    here.mark(place, row, 3)
    assert here.marked(2) == []
    assert here.marked(3) == [place]
    assert here.marked(3) == []
    assert here.judge(place, row, from_outside=True) is None
    place.mark = 1
    guilty = here.judge(place, row, from_outside=True)
    assert guilty is not None
    assert (place.mark, place.suspicion.skip) == (0, (0,))
    assert not here.check(Place(), row)


def test_same_bytes_of_another_shape_or_input_are_another_input(arena: Arena) -> None:
    def tensors(*shapes: tuple[int, ...], number: int = 0) -> Request:
        _, inputs, _ = arena.claim(tuple(("uint8", shape) for shape in shapes), ())
        for span in inputs:
            arena.mapping.array(span)[...] = 6
        inputs = tuple(span._replace(number=span.number + number) for span in inputs)
        return Request(1, 0, 1, 0.0, model="letters", version=1, inputs=inputs)

    quarantine = Quarantine(arena.mapping)
    quarantine.add(tensors((1, 40)), 0)
    quarantine.suspect(tensors((1, 40)))
    assert quarantine.check(tensors((1, 40))) == (True, (0,))
    assert quarantine.check(tensors((40, 1))) == (False, ())
    assert quarantine.check(tensors((1, 40), number=1)) == (False, ())


def test_short_input_is_compared_byte_by_byte_from_the_first_look(arena: Arena) -> None:
    """Nothing is read twice for an innocent one, so its sample must differ."""
    quarantine = Quarantine(arena.mapping)
    _, inputs, _ = arena.claim((("uint8", (1, 60)),), ())
    one = Request(1, 0, 1, 0.0, model="letters", version=1, inputs=inputs)
    array = arena.mapping.array(inputs[0])
    array[...] = 6
    quarantine.suspect(one)
    array[0, 31] = 7
    assert quarantine.check(one) == (False, ())


def test_oldest_suspects_give_way_and_the_newest_stay(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "_MOST", 3)
    quarantine = Quarantine(arena.mapping)
    requests = [request(arena, [value]) for value in range(5)]
    for one in requests:
        quarantine.suspect(one)
    assert [quarantine.check(one)[0] for one in requests] == [False, False, True, True, True]


def test_those_whose_time_is_over_go_first(arena: Arena) -> None:
    clock = Clock()
    quarantine = Quarantine(arena.mapping, clock)
    early, late = request(arena, [1]), request(arena, [2])
    quarantine.suspect(early)
    clock.now = 30
    quarantine.suspect(late)
    clock.now = 61
    assert (quarantine.check(early)[0], quarantine.check(late)[0]) == (False, True)
