"""S5, in short: callers that cancel."""

import pytest

from tests.reliability import s05_cancels


@pytest.mark.parametrize("seed", [0, 3])
def test_cancelled_calls_leave_nothing_behind_and_mix_nothing_up(seed: int) -> None:
    tally = s05_cancels.run(900, seed)
    assert tally.failed == 0, tally.examples


def test_answers_of_other_images_are_found() -> None:
    assert s05_cancels.control(0).failed > 0
