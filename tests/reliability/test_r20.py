"""R20 in short: the batch makes no difference."""

from tests.reliability import r20_batching


def test_image_gets_the_same_answer_in_any_batch_from_any_engine() -> None:
    tally = r20_batching.run(1000, 1)
    assert tally.trials == 1000
    assert tally.failed == 0, tally.examples


def test_control_network_whose_answers_depend_on_the_batch_is_found() -> None:
    assert r20_batching.control(1).failed == 2
