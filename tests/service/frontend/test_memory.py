"""When a front end returns memory to the system."""

from convoy.service.config import MIB
from convoy.service.frontend.memory import Excess


def test_memory_of_a_flood_is_returned_once_the_flood_is_over() -> None:
    excess = Excess(100 * MIB)
    assert not excess.found(100 * MIB, 0)
    assert not excess.found(1500 * MIB, 500 * MIB)  # three times what is in flight
    assert excess.found(1500 * MIB, 0)
    excess.returned(110 * MIB)
    assert not excess.found(110 * MIB, 0)


def test_memory_that_is_in_use_is_not_tried_again_and_again() -> None:
    excess = Excess(100 * MIB)
    assert not excess.found(100 * MIB, 0)
    assert excess.found(1000 * MIB, 0)
    excess.returned(990 * MIB)
    assert not any(excess.found(1000 * MIB, 0) for _ in range(100))
    # Once it is free, less counts as much again.
    assert not excess.found(100 * MIB, 0)
    assert excess.found(200 * MIB, 0)


def test_little_memory_is_kept_for_what_comes_next() -> None:
    excess = Excess(100 * MIB)
    assert not any(excess.found((100 + more) * MIB, 0) for more in range(48))
