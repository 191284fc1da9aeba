"""R14 in short: no name makes the server open a file outside its repository."""

from tests.reliability import r14_names


def test_ten_thousand_names_open_nothing_outside() -> None:
    tally = r14_names.PROBE.run(10_000, 0)
    assert tally.failed == 0, "\n".join(tally.examples)


def test_file_that_is_opened_outside_is_found() -> None:
    tally = r14_names.PROBE.control(0)
    assert any("zqsecret" in example for example in tally.examples), tally.examples
