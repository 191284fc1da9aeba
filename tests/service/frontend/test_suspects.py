"""Which requests are guilty of an engine's death, and how long their inputs are refused."""

import os
from collections.abc import Iterator

import pytest

from convoy.service.frontend import suspects
from convoy.service.frontend.suspects import INNOCENT, Quarantine, Suspicion, after_death
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
