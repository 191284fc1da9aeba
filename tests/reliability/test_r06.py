"""R6 in short: nothing is kept."""

from tests.reliability import r06_leaks


def test_processes_hold_no_more_after_thousands_of_requests_than_before() -> None:
    tally = r06_leaks.run(6_000, 0)
    assert tally.trials >= 6_000
    assert tally.failed == 0, tally.examples


def test_control_front_end_that_keeps_memory_and_descriptors_is_found() -> None:
    assert r06_leaks.control(0).failed >= 2
