"""FileTrials end with a verdict, whatever a file does to the process that tries it."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.service.config import ModelConfig, RepositoryConfig
from convoy.service.engine import file_trials
from convoy.service.engine.file_trials import FileTrials, job_of, spawn
from convoy.service.errors import BadConfig
from tests import processes
from tests.service import networks

SOUND = ("", "always")


@pytest.fixture(scope="module")
def trials() -> Iterator[FileTrials]:
    running = spawn()
    yield running
    running.close()


def verdict(trials: FileTrials, file: Path, *, errors: bool = True, **settings: float) -> tuple[str, str]:
    found = trials.load(job_of(file, RepositoryConfig(**settings), errors=errors))
    return found.reason, found.holds


@pytest.mark.parametrize("network", [networks.classifier, networks.doubler, networks.compressor, networks.with_default])
def test_sound_file_may_be_loaded(trials: FileTrials, tmp_path: Path, network: object) -> None:
    assert callable(network)
    assert verdict(trials, networks.save(network(), tmp_path, "sound")) == SOUND


def test_file_that_kills_is_found_for_good(trials: FileTrials, tmp_path: Path) -> None:
    file = networks.save_bytes(networks.deadly(), tmp_path, "deadly")
    assert verdict(trials, file) == ("loading it and a first run ended a process with SIGABRT", "always")


def test_file_that_hangs_ends_in_time(trials: FileTrials, tmp_path: Path) -> None:
    file = networks.save(networks.endless(), tmp_path, "endless")
    # It may use CPU time for a whole second more than that: so late may the end of its time be seen.
    found = verdict(trials, file, trial_seconds=2)
    assert found == ("loading it and a first run did not end within 2 s", "server")


@pytest.mark.parametrize(("left", "late"), [(-1.0, True), (60.0, False)])
def test_file_was_late_also_where_the_kernel_ended_it_first(left: float, late: bool) -> None:
    """As the kernel does once the CPU time is used up that a trial may take."""
    process = subprocess.Popen(["sleep", "60"])
    pidfd = os.pidfd_open(process.pid)
    process.kill()
    reader, writer = os.pipe()
    file_trials._finish(pidfd, file_trials._Child(process.pid, writer, time.monotonic() + left))
    process.returncode = 0  # it has been waited for
    with os.fdopen(reader, "rb") as answer:
        assert json.loads(answer.read()) == [-signal.SIGKILL, late]


def test_file_that_hangs_keeps_no_other_waiting(trials: FileTrials, tmp_path: Path) -> None:
    endless = networks.save(networks.endless(), tmp_path, "endless")
    sound = networks.save(networks.doubler(), tmp_path, "sound")
    found: list[tuple[str, str]] = []
    slow = threading.Thread(target=lambda: found.append(verdict(trials, endless, trial_seconds=3600)))
    slow.start()
    until = time.monotonic() + 60
    while not (hanging := processes.children(trials._pid)):
        assert time.monotonic() < until
        threading.Event().wait(0.01)
    assert verdict(trials, sound) == SOUND
    assert found == []
    os.kill(hanging[0], signal.SIGKILL)
    slow.join()
    assert found == [("loading it and a first run ended a process with SIGKILL", "server")]


def test_error_is_a_reason_only_where_the_engine_would_meet_it_too(trials: FileTrials, tmp_path: Path) -> None:
    model = networks.doubler()
    model.graph.node[0].op_type = "Unheard"
    file = networks.save_bytes(model.SerializeToString(), tmp_path, "other")
    reason, holds = verdict(trials, file)
    assert reason.startswith("onnxruntime cannot load it: ")
    assert holds == "once"
    assert verdict(trials, file, errors=False) == ("", "once")


def test_file_that_is_no_network_is_refused_wherever_it_would_run(trials: FileTrials, tmp_path: Path) -> None:
    file = networks.save_bytes(b"no network", tmp_path, "other")
    assert verdict(trials, file, errors=False) == ("it is no ONNX file", "once")


def test_lack_of_memory_does_not_hold_for_ever(trials: FileTrials, tmp_path: Path) -> None:
    file = networks.save(networks.classifier(), tmp_path, "letters")
    reason, holds = verdict(trials, file, trial_memory_mib=1)
    assert reason
    assert holds != "always"


def test_trials_go_on_after_their_process_was_killed(tmp_path: Path) -> None:
    running = spawn()
    file = networks.save(networks.doubler(), tmp_path, "sound")
    assert verdict(running, file) == SOUND
    os.kill(running._pid, signal.SIGKILL)
    os.waitid(os.P_PID, running._pid, os.WEXITED | os.WNOWAIT)
    assert verdict(running, file) == SOUND
    running.close()


def test_trials_go_on_after_their_process_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_trials, "_SILENCE", 0.1)
    file = networks.save(networks.doubler(), tmp_path, "sound")
    running = spawn()
    os.kill(running._pid, signal.SIGSTOP)
    assert verdict(running, file, trial_seconds=0.1) == (
        "the process that tried it has ended without an answer",
        "once",
    )
    assert verdict(running, file) == SOUND
    os.kill(running._pid, signal.SIGSTOP)
    running.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials give way to whatever else runs: on a busy machine, the shortest takes seconds."""
    monkeypatch.setattr(file_trials, "_SETTINGS_SECONDS", 100.0)


@pytest.mark.usefixtures("patient")
def test_settings_are_read_of_any_length(trials: FileTrials) -> None:
    comment = b"#" + b"x" * 500_000
    assert trials.settings(b"max_batch_size = 3\n" + comment) == ModelConfig(max_batch_size=3)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a=" + b"[" * 50_000, "maximum recursion depth exceeded"),
        (b"a=" + b"9" * 5_000, "Exceeds the limit"),
        (b"max_batch_size = 0\n#" + b"x" * 5000, "max_batch_size is 0, want"),
        (b"a=" + b"[" * 1_000, "maximum recursion depth exceeded"),  # so short that it is read here
    ],
    ids=range(4),
)
def test_settings_that_cannot_be_read_are_an_error(trials: FileTrials, text: bytes, why: str) -> None:
    with pytest.raises(BadConfig, match=why):
        trials.settings(text)


def test_settings_that_take_too_long_are_an_error(trials: FileTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.service.engine.file_trials._SETTINGS_SECONDS", 0.5)
    with pytest.raises(BadConfig):
        trials.settings(b"a." * 100_000 + b"a=1")
