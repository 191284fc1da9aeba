"""R3, in short: kills of front ends."""

import pytest

from tests.reliability import r03_front_ends


@pytest.mark.parametrize(("seed", "kills"), [(0, 3), (7, 2)])
def test_killed_front_ends_fail_no_call_of_clients_that_retry(seed: int, kills: int) -> None:
    tally = r03_front_ends.run(kills, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == kills


def test_calls_that_are_not_retried_are_found() -> None:
    assert r03_front_ends.control(0).failed > 0
