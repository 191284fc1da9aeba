"""R4, in short: servers that end under load."""

import pytest

from tests.reliability import r04_drains


@pytest.mark.parametrize(("seed", "drains"), [(0, 2), (1, 2), (3, 1)])
def test_drains_fail_no_call_of_clients_that_know_two_servers(seed: int, drains: int) -> None:
    tally = r04_drains.run(drains, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == drains


def test_servers_that_end_otherwise_are_found() -> None:
    assert r04_drains.control(0).failed > 0
