"""R5, in short: versions that replace each other."""

import pytest

from tests.reliability import r05_swaps


@pytest.mark.parametrize(("seed", "swaps"), [(0, 6), (3, 4)])
def test_versions_replace_each_other_without_an_error(seed: int, swaps: int) -> None:
    tally = r05_swaps.run(swaps, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == swaps


def test_answers_of_another_version_are_found() -> None:
    assert r05_swaps.control(0).failed > 0
