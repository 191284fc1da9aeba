"""R10, in short: images that end engines."""

import pytest

from tests.reliability import r10_poison


@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_batch_of_32_only_the_image_fails_that_ends_the_engine(seed: int) -> None:
    tally = r10_poison.run(2, seed)
    assert tally.failed == 0, tally.examples
    assert tally.trials == 2


def test_second_image_that_fails_is_found() -> None:
    assert r10_poison.control(0).failed > 0
