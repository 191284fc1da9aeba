"""R16, in short: counts of the server and of its callers."""

import pytest

from tests.reliability import r16_metrics


@pytest.mark.parametrize("seed", [0, 3])
def test_counts_are_exact_whatever_is_killed(seed: int) -> None:
    tally = r16_metrics.run(3, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == 3


def test_call_that_callers_forget_is_found() -> None:
    assert r16_metrics.control(0).failed > 0
