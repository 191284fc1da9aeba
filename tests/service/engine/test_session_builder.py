"""Sessions in the layout that is configured, or in the one that measures better; each runs what it is given."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from convoy.service.config import EngineConfig
from convoy.service.engine import profiles, session_builder
from convoy.service.engine import session as sessions
from convoy.service.engine.instances import Instances, Together
from convoy.service.engine.layouts import Layout
from convoy.service.engine.profiles import BatchTime
from convoy.service.engine.providers import CPU, CUDA, Device
from convoy.service.engine.session import Session
from convoy.service.engine.session_builder import build
from tests.service import networks

LETTER = (8, 8, 1)
TWO = Device("cpu", EngineConfig(provider="cpu", threads=2))


def letters(session: Session) -> dict[tuple[int, ...], int]:
    return {LETTER: 2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return networks.save(networks.classifier(), tmp_path, "letters", 1)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each session that was loaded."""
    found: list[int] = []
    real = sessions.load_on

    def seen(file: Path, device: Device, threads: int) -> Session:
        found.append(threads)
        return real(file, device, threads)

    monkeypatch.setattr(sessions, "load_on", seen)
    return found


def set_times(file: Path, one: float, several: float) -> None:
    """What the two layouts were measured to take for an image."""
    found = [
        msgspec.structs.replace(each, batches={1: BatchTime(seconds, seconds)})
        for each in profiles.read(file.parent)
        for seconds in [one if each.machine.instances == 1 else several]
    ]
    profiles.write(file.parent, found)


def test_configured_number_is_built_and_measured_together(file: Path, threads: list[int]) -> None:
    instances, (made,) = build(file, TWO, 2, 0.1, letters)
    assert len(instances) == 2
    assert threads == [1, 1]
    assert (made.machine.instances, made.machine.threads) == (2, 1)


def test_auto_measures_both_and_builds_only_the_better_one_from_then_on(file: Path, threads: list[int]) -> None:
    build(file, TWO, "auto", 0.1, letters)
    assert threads == [2, 1, 1]
    assert {each.machine.instances for each in profiles.read(file.parent)} == {1, 2}
    for several, expected in ((0.010, [1, 1]), (0.019, [1, 1]), (0.0195, [2]), (0.030, [2])):
        set_times(file, 0.010, several)
        threads.clear()
        instances, (made,) = build(file, TWO, "auto", 0.1, letters)
        assert threads == expected
        assert len(instances) == made.machine.instances == len(expected)
    assert {each.machine.instances for each in profiles.read(file.parent)} == {1, 2}


def test_both_layouts_are_measured_anew_once_serving_has_contradicted_one(file: Path, threads: list[int]) -> None:
    build(file, TWO, "auto", 0.1, letters)
    set_times(file, 1000.0, 500.0)  # as no measurement finds
    (several,) = (each for each in profiles.read(file.parent) if each.machine.instances == 2)
    profiles.replace(file.parent, [profiles.revised(several, {1: 700.0})])
    threads.clear()
    build(file, TWO, 2, 0.1, letters)
    assert threads == [1, 1]
    assert sum(each.revised for each in profiles.read(file.parent)) == 1  # a fixed number keeps what was learnt
    threads.clear()
    build(file, TWO, "auto", 0.1, letters)
    assert threads == [2, 1, 1]
    assert not any(each.revised for each in profiles.read(file.parent))
    assert max(each.batches[1].seconds for each in profiles.read(file.parent)) < 500


def test_profiles_of_another_machine_choose_nothing(file: Path, threads: list[int]) -> None:
    build(file, TWO, "auto", 0.1, letters)
    foreign = [
        msgspec.structs.replace(each, machine=msgspec.structs.replace(each.machine, onnxruntime="1.0.0"))
        for each in profiles.read(file.parent)
    ]
    profiles.write(file.parent, foreign)
    threads.clear()
    build(file, TWO, "auto", 0.1, letters)
    assert threads == [2, 1, 1]


def test_auto_is_one_where_there_is_nothing_to_measure(file: Path, threads: list[int]) -> None:
    build(file, TWO, "auto", 0.1, lambda session: {})
    build(file, Device("cpu", EngineConfig(threads=1)), "auto", 0.1, letters)
    build(file, Device("cpu", EngineConfig(threads=2, sleep_ms=(0.0, 0.0))), "auto", 0.1, letters)
    assert threads == [2, 1, 2]


class Waiting:
    """A session that runs once all have come."""

    provider = CPU

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier, self.threads = barrier, set[str]()

    def run(self, arrays: Any) -> Any:
        self.barrier.wait(20)
        self.threads.add(str(threading.get_ident()))
        return arrays


def test_together_each_session_runs_the_batch_at_the_same_time_in_a_thread_of_its_own() -> None:
    barrier = threading.Barrier(3)
    each: Any = [Waiting(barrier) for _ in range(3)]
    together = Together(Instances(each))
    for _ in range(4):
        together.run([np.zeros(1)])
    assert [len(one.threads) for one in each] == [1, 1, 1]
    assert len(set.union(*(one.threads for one in each))) == 3


def test_idle_session_is_taken_and_the_same_one_by_a_lone_caller() -> None:
    sessions: Any = [object(), object()]
    instances = Instances(sessions)
    first = instances.reserve()
    assert first.session is sessions[0]
    second = instances.reserve()
    assert second.session is sessions[1]
    first.running -= 1
    assert instances.reserve() is first
    third = instances.reserve()  # more than there are: it waits in the thread of one of them
    assert third.running == 2


def test_gpu_is_measured_with_the_memory_that_batches_will_have(file: Path) -> None:
    instances = session_builder.load_all(file, TWO, Layout(1, 1))
    session = instances.session
    session.provider = CUDA
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), np.uint8)
    (found,) = session_builder.measured(instances).run([images])
    assert (session.input_buffers[0].array(images.shape, images.dtype) == images).all()
    assert np.shares_memory(found, session.output_buffers[0].array((1,), np.dtype(np.uint8)))
    assert (found == session.run([images])[0]).all()


def test_sessions_are_measured_as_they_will_run(file: Path) -> None:
    load: Callable[[int], Instances] = lambda number: session_builder.load_all(file, TWO, Layout(number, 1))  # noqa: E731
    assert not isinstance(session_builder.measured(load(1)), Together)
    assert isinstance(session_builder.measured(load(2)), Together)
