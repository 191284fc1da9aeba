"""Tests that run in two processes at once, and those that must not."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.turns import Turns, encodable, locked


class Runner:
    """Another process of the suite with one test, as a thread with locks of its own."""

    def __init__(self, folder: Path, *, alone: bool, on_entry: Callable[[], None] = lambda: None) -> None:
        self.runs, self.end = threading.Event(), threading.Event()
        self.turns, self.alone, self.on_entry = Turns(folder), alone, on_entry
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self.turns.turn(alone=self.alone):
            self.on_entry()
            self.runs.set()
            assert self.end.wait(60)

    def finish(self) -> None:
        self.end.set()
        self.thread.join(60)


def wait_for_waiting(folder: Path, count: int) -> None:
    """Until so many wait for one of the locks, as the system lists them."""
    files = {str(path.stat().st_ino) for path in folder.iterdir()}
    deadline = time.monotonic() + 60
    while count > sum(
        "->" in line and line.split()[-3].rpartition(":")[2] in files
        for line in Path("/proc/locks").read_text().splitlines()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_two_tests_run_at_once(tmp_path: Path) -> None:
    first, second = Runner(tmp_path, alone=False), Runner(tmp_path, alone=False)
    assert first.runs.wait(60)
    assert second.runs.wait(60)
    first.finish()
    second.finish()


@pytest.mark.parametrize(("first_alone", "second_alone"), [(True, False), (False, True), (True, True)])
def test_test_that_is_alone_shares_the_time_with_no_other(
    tmp_path: Path, first_alone: bool, second_alone: bool
) -> None:
    first = Runner(tmp_path, alone=first_alone)
    assert first.runs.wait(60)
    seen: list[bool] = []
    second = Runner(tmp_path, alone=second_alone, on_entry=lambda: seen.append(first.end.is_set()))
    wait_for_waiting(tmp_path, 1)
    first.finish()
    assert second.runs.wait(60)
    second.finish()
    assert seen == [True]


def test_test_that_waits_to_be_alone_is_not_overtaken(tmp_path: Path) -> None:
    order: list[str] = []
    first = Runner(tmp_path, alone=False)
    assert first.runs.wait(60)
    second = Runner(tmp_path, alone=True, on_entry=lambda: order.append("alone"))
    wait_for_waiting(tmp_path, 1)
    third = Runner(tmp_path, alone=False, on_entry=lambda: order.append("shared"))
    wait_for_waiting(tmp_path, 2)
    first.finish()
    assert second.runs.wait(60)
    second.finish()
    assert third.runs.wait(60)
    third.finish()
    assert order == ["alone", "shared"]


def test_lock_makes_its_file(tmp_path: Path) -> None:
    with locked(tmp_path / "below" / "lock"):
        assert (tmp_path / "below" / "lock").is_file()


def test_text_that_no_encoding_takes_reaches_the_process_that_reports() -> None:
    report = {"sections": [("log", "a\udcff")], "location": ["\ud800.py", 3, None]}
    assert encodable(report) == {"sections": [("log", "a\\udcff")], "location": ["\\ud800.py", 3, None]}
