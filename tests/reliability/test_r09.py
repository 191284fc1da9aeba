"""R9 in short: bytes in flight stay below their limit."""

from tests.reliability import r09_bytes
from tests.service.running import skip_without


def test_bytes_in_flight_stay_below_their_limit_whatever_is_sent_or_declared() -> None:
    skip_without("nghttp2")
    tally = r09_bytes.run(10_000, 1)
    assert tally.trials == 10_000
    assert tally.failed == 0, tally.examples


def test_control_a_gate_that_is_open_is_found() -> None:
    skip_without("nghttp2")
    assert r09_bytes.control(1).failed > 0
