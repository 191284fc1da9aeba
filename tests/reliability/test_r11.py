"""R11, in short: processes, runs and files that hang."""

import pytest

from tests.reliability import r11_hangs


@pytest.mark.parametrize(("seed", "hangs"), [(0, 4), (1, 2)])
def test_what_hangs_is_found_and_costs_no_answer(seed: int, hangs: int) -> None:
    tally = r11_hangs.run(hangs, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == hangs


def test_engine_that_nobody_watches_is_found_to_hang() -> None:
    assert r11_hangs.control(0).failed > 0
