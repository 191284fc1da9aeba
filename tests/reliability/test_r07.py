"""R7 in short: what has expired is neither decoded nor run."""

import pytest

from tests.reliability import r07_deadlines


@pytest.mark.parametrize("seed", [0, 1], ids=["nghttp2", "grpcio"])
def test_requests_that_have_expired_reach_neither_decoder_nor_network(seed: int) -> None:
    tally = r07_deadlines.run(5000, seed)
    assert tally.trials == 5000
    assert tally.failed == 0, tally.examples


def test_control_requests_at_whose_deadlines_nobody_looks_are_found() -> None:
    assert r07_deadlines.control(0).failed > 0
