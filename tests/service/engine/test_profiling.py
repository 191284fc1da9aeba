"""Profiles: what is measured before serving, which sizes run for it, and when what was measured once is used again."""

import itertools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from convoy.service.engine import profiles, profiling
from convoy.service.engine.profiles import BatchTime, Machine, Profile
from convoy.service.engine.profiling import measure, prepare, shapes
from convoy.service.engine.providers import CUDA
from convoy.service.engine.session import Session, load
from convoy.service.errors import BadModelFile
from convoy.service.metadata import decode
from tests.service import networks

LETTER = (8, 8, 1)
MACHINE = Machine(device="a machine", provider="CPUExecutionProvider", threads=1, onnxruntime="1", model_sha256="0")


class Counted(Session):
    """A session that takes as long as it is told to, on a clock of its own, and counts its runs."""

    def __init__(self, real: Session, seconds: Callable[[int], float]) -> None:
        self.__dict__ = real.__dict__
        self.seconds, self.now, self.sizes = seconds, 0.0, []

    def run(self, arrays: list[NDArray[np.generic]]) -> list[NDArray[np.generic]]:  # type: ignore[override]
        size = len(arrays[0])
        first = size not in self.sizes
        self.sizes.append(size)
        self.now += self.seconds(size) * (3 if first else 1)
        return []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return networks.save(networks.classifier(), tmp_path, "letters", 1)


@pytest.fixture
def counted(file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], Counted]:
    real = load(file, "cpu", 0, 1)

    def make(seconds: Callable[[int], float]) -> Counted:
        session = Counted(real, seconds)
        monkeypatch.setattr(profiling.time, "perf_counter", lambda: session.now)
        monkeypatch.setattr(profiling.time, "process_time", lambda: 2 * session.now)
        return session

    return make


def affine(size: int) -> float:
    return 0.005 + 0.001 * size


def test_sizes_are_doubled_up_to_the_largest_where_each_brings_more(counted) -> None:
    made = measure(counted(affine), MACHINE, LETTER, 48)
    assert list(made.batches) == [1, 2, 4, 8, 16, 32, 48]
    assert made.seconds == pytest.approx({size: affine(size) for size in made.batches})  # without each first run
    assert made.batches[4].cpu_seconds == pytest.approx(2 * affine(4))
    assert (made.shape, made.dtype, made.most) == ((8, 8, 1), "uint8", 48)


def test_larger_batches_are_not_tried_where_they_bring_nothing(counted) -> None:
    made = measure(counted(lambda size: 0.004 * size), MACHINE, LETTER, 1024)
    assert list(made.batches) == [1, 2, 4]
    assert made.batch_size == 1
    session = counted(lambda size: 0.4 * size)
    slow = measure(session, MACHINE, LETTER, 1024)
    assert list(slow.batches) == [1, 2]
    assert session.sizes == [1, 2]  # what takes long is not measured again


@pytest.mark.parametrize(("runs", "times_slower"), [(4, 5.0), (1, 100.0)])
def test_size_that_seems_not_to_pay_is_measured_again(counted, runs: int, times_slower: float) -> None:
    """Something else uses the machine during the first runs of batches of 4."""
    session = counted(affine)
    session.seconds = lambda size: affine(size) * (times_slower if size == 4 and early() else 1.0)

    def early() -> bool:
        return session.sizes.count(4) <= runs

    made = measure(session, MACHINE, LETTER, 16)
    assert made.seconds == pytest.approx({size: affine(size) for size in (1, 2, 4, 8, 16)})
    assert made.batch_size == 16


@pytest.mark.parametrize(
    ("largest_that_runs", "words"),
    [
        (0, "of 1 of 8x8x1 failed; the log has the reason$"),
        (2, "a batch of 4 of 8x8x1 failed.*smaller batching"),
    ],
)
def test_batch_that_fails_is_named(counted, largest_that_runs: int, words: str) -> None:
    def seconds(size: int) -> float:
        if size > largest_that_runs:
            raise MemoryError
        return affine(size)

    with pytest.raises(BadModelFile, match=words):
        measure(counted(seconds), MACHINE, LETTER, 48)


def test_each_size_that_will_be_used_has_run(counted) -> None:
    session = counted(affine)
    made = measure(session, MACHINE, LETTER, 16)
    assert made.batch_size == 16
    assert set(session.sizes) == set(range(1, 17))


def test_sizes_that_will_not_be_used_do_not_all_run(counted) -> None:
    session = counted(lambda size: 0.004 * size)
    measure(session, MACHINE, LETTER, 32)
    assert set(session.sizes) == {1, 2, 4}


def test_every_size_is_measured_on_a_gpu_and_padded_where_a_larger_one_is_faster(counted) -> None:
    session = counted(lambda size: affine(8 if size in (5, 6, 7) else 32 if size == 9 else size))
    session.provider = CUDA
    made = measure(session, msgspec.structs.replace(MACHINE, provider=CUDA), LETTER, 16)
    assert list(made.batches) == list(range(1, 17))
    assert msgspec.structs.replace(made, machine=MACHINE).padding == {}  # what a CPU would not do
    assert made.padding == {9: 10}
    assert made.seconds[9] == made.seconds[10]
    assert made.batch_size == 16


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0}, {}),
        ({1: 1.0, 2: 2.0, 4: 1.5}, {2: 4, 3: 4}),
        ({1: 1.0, 2: 1.0, 4: 0.98}, {}),  # within what a measurement is worth
        ({1: 5.0, 2: 4.0, 4: 3.0}, {1: 4, 2: 4, 3: 4}),
        ({8: 1.0}, {}),
    ],
)
def test_batches_are_padded_only_where_that_is_clearly_faster(seconds, found) -> None:
    assert profiles.padding(seconds) == found


def test_long_runs_are_few(counted) -> None:
    session = counted(lambda size: 2.0 * size)
    measure(session, MACHINE, LETTER, 32)
    assert session.sizes == [1, 2]


def test_profile_is_kept_beside_the_model_and_used_again(file: Path) -> None:
    (made,) = prepare(load(file, "cpu", 0, 1), file, {LETTER: 8}, 0, 1)
    assert profiles.read(file.parent) == [made]
    assert made.machine.onnxruntime
    assert made.machine.threads == 1
    known = msgspec.structs.replace(made, batches={1: BatchTime(7.0, 7.0)})
    profiles.write(file.parent, [known])
    assert prepare(load(file, "cpu", 0, 1), file, {LETTER: 8}, 0, 1) == (known,)
    assert {path.name for path in file.parent.iterdir()} == {"model.onnx", profiles.FILE}


@pytest.mark.parametrize("change", ["file", "threads", "most", "device", "library"])
def test_profile_of_something_else_is_made_anew(file: Path, change: str) -> None:
    (made,) = prepare(load(file, "cpu", 0, 1), file, {LETTER: 8}, 0, 1)
    machine = made.machine
    if change == "device":
        machine = msgspec.structs.replace(machine, device="another processor")
    if change == "library":
        machine = msgspec.structs.replace(machine, onnxruntime="1.0.0")
    profiles.write(file.parent, [msgspec.structs.replace(made, machine=machine, batches={1: BatchTime(7.0, 7.0)})])
    if change == "file":
        onnx.save(networks.classifier(scale=2.0), file)
    threads, most = (2 if change == "threads" else 1), (4 if change == "most" else 8)
    (again,) = prepare(load(file, "cpu", 0, threads), file, {LETTER: most}, 0, threads)
    assert again.batches[1].seconds != 7.0
    assert profiles.read(file.parent) == [again]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"machine": 1}', b"\xff", b"[1]"])
def test_file_that_is_no_profile_is_replaced(file: Path, content: bytes) -> None:
    (file.parent / profiles.FILE).write_bytes(content)
    (made,) = prepare(load(file, "cpu", 0, 1), file, {LETTER: 2}, 0, 1)
    assert profiles.read(file.parent) == [made]


def test_model_is_served_where_nothing_can_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(folder: Path, profiles: Sequence[Profile]) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(profiles, "write", read_only)
    assert len(prepare(load(file, "cpu", 0, 1), file, {LETTER: 2}, 0, 1)) == 1
    assert not (file.parent / profiles.FILE).exists()


def test_write_that_fails_leaves_nothing_behind(file: Path) -> None:
    made = Profile(machine=MACHINE, shape=(1,), dtype="uint8", most=1, batches={1: BatchTime(1.0, 1.0)})
    (file.parent / profiles.FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        profiles.write(file.parent, [made])
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.onnx", profiles.FILE]


def test_profile_can_be_read_by_others(file: Path) -> None:
    """Another server, of another user, may share the repository."""
    before = os.umask(0o022)
    try:
        prepare(load(file, "cpu", 0, 1), file, {LETTER: 2}, 0, 1)
    finally:
        os.umask(before)
    assert (file.parent / profiles.FILE).stat().st_mode & stat.S_IROTH


def test_times_measured_while_serving_replace_those_of_the_profile(file: Path) -> None:
    (made,) = prepare(load(file, "cpu", 0, 1), file, {LETTER: 8}, 0, 1)
    old = msgspec.structs.replace(made, batches={1: BatchTime(1.0, 2.0), 4: BatchTime(4.0, 8.0)})
    other = msgspec.structs.replace(old, machine=msgspec.structs.replace(old.machine, instances=2))
    profiles.write(file.parent, [old, other])
    new = profiles.revised(old, {1: 1.0, 4: 2.0, 8: 3.0})
    profiles.replace(file.parent, [new])
    assert new.batches == {1: BatchTime(1.0, 2.0), 4: BatchTime(2.0, 4.0), 8: BatchTime(3.0, 6.0)}
    assert (old.batch_size, new.batch_size) == (1, 8)
    assert profiles.read(file.parent) == [new, other]
    assert prepare(load(file, "cpu", 0, 1), file, {LETTER: 8}, 0, 1) == (new,)
    (again,) = prepare(load(file, "cpu", 0, 1), file, {LETTER: 8}, 0, 1, again=True)
    assert not again.revised
    assert again.batches[1].seconds != 1.0
    assert profiles.read(file.parent) == [again, other]


def test_size_that_always_runs_padded_changes_like_the_one_it_is_padded_to() -> None:
    machine = msgspec.structs.replace(MACHINE, provider=CUDA)
    batches = {1: BatchTime(1.0, 1.0), 3: BatchTime(6.0, 6.0), 4: BatchTime(2.0, 2.0)}
    old = Profile(machine=machine, shape=LETTER, dtype="uint8", most=4, batches=batches)
    new = profiles.revised(old, {1: 1.0, 3: 3.0, 4: 3.0})
    assert old.padding == new.padding == {2: 4, 3: 4}
    assert [new.batches[size].seconds for size in (1, 3, 4)] == [1.0, 9.0, 3.0]


SMALL, WIDE = (4, 8, 3), (8, 16, 3)


def test_every_size_of_every_shape_runs_before_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sizes that seem to take long would not all run.
    ticks = itertools.count()
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: 0.0001 * next(ticks))
    file = networks.save(networks.segmenter(), tmp_path, "colours", 1)
    session, shapes = load(file, "cpu", 0, 1), []
    real = session.run
    session.run = lambda arrays: shapes.append(arrays[0].shape) or real(arrays)  # type: ignore
    made = prepare(session, file, {SMALL: 4, WIDE: 2}, 0, 1)
    assert [(each.shape, each.most) for each in made] == [(SMALL, 4), (WIDE, 2)]
    assert {(1, *SMALL), (2, *SMALL), (1, *WIDE), (2, *WIDE)} <= set(shapes)
    assert max(shape[0] for shape in shapes if shape[1:] == SMALL) <= 4
    assert max(shape[0] for shape in shapes if shape[1:] == WIDE) == 2
    shapes.clear()
    assert prepare(session, file, {SMALL: 4, WIDE: 2}, 0, 1) == made
    assert set(shapes) == {(size, *each.shape) for each in made for size in range(1, each.batch_size + 1)}


def test_shape_that_comes_later_is_measured_beside_those_that_are_known(tmp_path: Path) -> None:
    file = networks.save(networks.segmenter(), tmp_path, "colours", 1)
    session = load(file, "cpu", 0, 1)
    (small,) = prepare(session, file, {SMALL: 4}, 0, 1)
    both = prepare(session, file, {SMALL: 4, WIDE: 2}, 0, 1)
    assert both[0] == small
    assert profiles.read(file.parent) == list(both)
    assert prepare(session, file, {WIDE: 2}, 0, 1) == both[1:]
    assert profiles.read(file.parent) == list(both)  # what is not asked for now may be asked for again


def test_shapes_are_those_that_are_known_before_serving() -> None:
    letters, colours, waves = (
        decode({entry.key: entry.value for entry in model.metadata_props})
        for model in (networks.classifier(), networks.segmenter(), networks.waves())
    )
    assert shapes(letters, [], 32, 1) == {LETTER: 32}  # one size: its memory is known
    assert shapes(colours, [], 32, 1000) == {}
    assert shapes(colours, [(4, 8), (8, 16), (64, 64)], 16, 320) == {(4, 8, 3): 10, (8, 16, 3): 2, (64, 64, 3): 1}
    assert shapes(waves, [], 32, 1000) == {}
    assert shapes(None, [], 32, 1000) == {}


def test_new_shape_is_warmed_by_one_run_of_each_size_the_largest_first(counted) -> None:
    session = counted(lambda size: 0.001)
    profiling.warm(session, LETTER, 5)
    assert session.sizes == [5, 4, 3, 2, 1]


def test_warming_up_on_a_cpu_ends_after_a_second(counted) -> None:
    session = counted(lambda size: 0.4)
    profiling.warm(session, LETTER, 32)
    assert len(session.sizes) <= 3
