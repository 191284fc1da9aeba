"""R12 in short: outputs that are wrong do not reach clients."""

from tests.reliability import r12_outputs


def test_no_wrong_output_reaches_a_client() -> None:
    tally = r12_outputs.run(50, 1)
    assert tally.trials == 50
    assert tally.failed == 0, tally.examples


def test_control_answers_that_look_right_and_rows_in_wrong_slots_are_found() -> None:
    assert r12_outputs.control(1).failed == 2
