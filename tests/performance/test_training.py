"""The loop of `convoy train` costs little more than a bare one, by CPU time: what else runs counts little in that."""

import time
from pathlib import Path
from typing import Any

import pytest

from convoy.models.training.module import Training
from tests.performance import training
from tests.performance.training import BEGIN, END, Found, Turn, Work, measured, replaced, table

SMALL = Work("lenet5", "digits", 20, 0.7)
LEAST = 0.5  # of the CPU time of a bare loop over that of ours; it was 0.55 with all that is left out now, is 0.85


def test_a_step_of_a_small_network_costs_little_more_than_in_a_bare_loop(tmp_path: Path) -> None:
    (found,) = measured(SMALL, tmp_path, rounds=7, busy=[False])
    assert len(found.own) == len(found.bare[1]) == len(found.bare[2]) == 7
    assert found.threads == 1
    assert found.cpu_share() > LEAST


def test_a_loop_that_does_too_much_per_step_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training.training_step

    def slow(self: Training, *arguments: Any) -> Any:
        begin = time.process_time()
        found = step(self, *arguments)
        # Ten times its own CPU time, whatever that is on this machine.
        end = begin + 10 * (time.process_time() - begin)
        while time.process_time() < end:
            pass
        return found

    monkeypatch.setattr(Training, "training_step", slow)
    (found,) = measured(SMALL, tmp_path, rounds=3, busy=[False])
    assert found.cpu_share() < LEAST


def test_busy_process_runs_in_the_turns_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = []
    before = training.Turns.on_validation_start

    def note(self: training.Turns, *arguments: Any) -> None:
        running.append(self.neighbour is not None)
        before(self, *arguments)

    monkeypatch.setattr(training.Turns, "on_validation_start", note)
    found = measured(SMALL._replace(steps=2), tmp_path, rounds=2)
    assert running == [False, False, True, False, True]
    assert [each.busy for each in found] == [False, True]
    assert all(len(each.own) == 2 for each in found)


def test_share_is_of_the_faster_bare_loop_and_goes_into_the_page() -> None:
    bare = {1: [Turn(0.02, 0.01)] * 3, 2: [Turn(0.01, 0.02)] * 3}
    found = Found(SMALL, 32, busy=True, own=[Turn(0.02, 0.02), Turn(0.02, 0.02), Turn(9.0, 9.0)], bare=bare)
    assert found.share() == pytest.approx(0.5)
    assert found.cpu_share() == pytest.approx(0.5)
    page = replaced(f"a\n{BEGIN}\nold\n{END}\nb\n", table([found]))
    assert (
        "| lenet5, batches of 32 | a busy process | 1,600 | 1,600 | 3,200 | 0.50 | 0.50 | 0.7, **not reached** |"
        in page
    )
    assert "old" not in page
    assert page.startswith("a\n")
    assert page.endswith("\nb\n")
    with pytest.raises(ValueError, match="has no"):
        replaced("a page without marks", "")
