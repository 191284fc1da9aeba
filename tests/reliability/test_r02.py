"""R2, in short: kills of engines."""

import pytest

from tests.reliability import r02_engines


@pytest.mark.parametrize("seed", [0, 7])
def test_killed_engines_cost_no_answer(seed: int) -> None:
    tally = r02_engines.run(10, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == 10


def test_calls_that_are_lost_are_found() -> None:
    assert r02_engines.control(0).failed > 0
