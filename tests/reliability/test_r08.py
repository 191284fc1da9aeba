"""R8, in short: callers that misuse connections."""

from collections.abc import Callable

import pytest

from tests.reliability import r08_attacks
from tests.reliability.probe import Tally
from tests.service.running import skip_without


@pytest.fixture(autouse=True)
def _library() -> None:
    skip_without("nghttp2")


@pytest.mark.parametrize(
    ("probe", "trials"), [(r08_attacks.run, 100), (r08_attacks.idle, 500), (r08_attacks.storm, 500)]
)
@pytest.mark.alone
def test_others_notice_nothing_of(probe: Callable[[int, int], Tally], trials: int) -> None:
    tally = probe(trials, 0)
    assert tally.failed == 0, tally.examples
    assert tally.trials == trials


@pytest.mark.parametrize("control", [r08_attacks.control, r08_attacks.idle_control, r08_attacks.storm_control])
@pytest.mark.alone
def test_what_others_must_notice_is_found(control: Callable[[int], Tally]) -> None:
    assert control(0).failed > 0
