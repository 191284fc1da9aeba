"""How the learning rate moves, for every schedule."""

import pytest

from convoy.models.settings import Schedule
from convoy.models.training.schedules import SCHEDULES, WARM_UP, momentum, share_of_rate


def shares(schedule: Schedule, steps: int = 100, warm_up: float | None = None) -> list[float]:
    return [share_of_rate(schedule, step, steps, warm_up) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warm_up", [None, 0.0, 0.2, 1.0])
def test_rate_is_above_zero_and_at_most_the_highest(schedule: Schedule, steps: int, warm_up: float | None) -> None:
    assert all(0 < share <= 1 for share in shares(schedule, steps, warm_up))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rate_rises_for_the_warm_up_and_reaches_the_highest(schedule: Schedule) -> None:
    found = shares(schedule, warm_up=0.2)
    assert found[:21] == sorted(found[:21])
    assert found[0] < 0.1
    assert max(found) == found[20] == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "steps"])
def test_rate_falls_behind_the_warm_up(schedule: Schedule) -> None:
    found = shares(schedule)[round(100 * WARM_UP[schedule]) :]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.02


def test_cosine_is_at_half_the_rate_in_the_middle_of_its_fall() -> None:
    found = shares("cosine")
    assert found[9] == 1.0  # the tenth of the steps that it rises for by itself
    assert found[55] == pytest.approx(0.5)


def test_steps_are_a_tenth_after_half_and_a_hundredth_after_three_quarters() -> None:
    found = shares("steps")
    assert found[49:51] == [1.0, 0.1]
    assert found[74:76] == pytest.approx([0.1, 0.01])


def test_constant_is_the_rate_from_the_first_step() -> None:
    assert shares("constant") == [1.0] * 100


def test_one_cycle_lowers_momentum_while_the_rate_is_high() -> None:
    found = [momentum("one-cycle", step, 100) for step in range(100)]
    assert found[0] == pytest.approx(0.95)
    assert found[30] == pytest.approx(0.85)
    assert 0.94 < (found[-1] or 0) <= 0.95
    assert momentum("cosine", 50, 100) is None
