"""Sessions follow the repository: what serves, what does not and why, and what is kept until it is let go."""

import asyncio
import errno
import gc
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from prometheus_client import REGISTRY

from convoy.models.export.seal import sealed
from convoy.service.config import Config, load
from convoy.service.engine import model_loader, profiles, profiling, session_builder, version_states
from convoy.service.engine import session as sessions
from convoy.service.engine.model_loader import Loader
from convoy.service.engine.profiles import BatchTime
from convoy.service.engine.providers import Device
from convoy.service.engine.server import Engine
from convoy.service.engine.session import Session
from convoy.service.errors import ModelUnavailable, UnknownModel
from convoy.service.repository import Table, Version
from convoy.service.sources import Source
from tests.service import networks

X = np.ones((1, 4), np.float32)


@pytest.fixture
def tables() -> list[Table]:
    """What the loader has published, in order."""
    return []


@pytest.fixture
def loader(tmp_path: Path, tables: list[Table]) -> Loader:
    return Loader(Source(tmp_path), Config(), tables.append)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were loaded, or were tried to be, in order."""
    files: list[Path] = []
    real = sessions.load_on

    def counted(file: Path, device: Device, threads: int) -> Session:
        files.append(file)
        return real(file, device, threads)

    monkeypatch.setattr(sessions, "load_on", counted)
    return files


def put(root: Path, model: str, version: int, *, corrupt: bool = False) -> Path:
    file = networks.save(networks.doubler(), root, model, version)
    if corrupt:
        file.write_bytes(b"not a network")
    return file


def states(table: Table) -> dict[tuple[str, int], str]:
    return {(row.model, row.version): row.state for row in table.versions}


def row_of(loader: Loader, model: str, version: int) -> Version:
    (row,) = (row for row in loader.table().versions if (row.model, row.version) == (model, version))
    return row


def touch_later(file: Path) -> None:
    """Its modification time moves on, however coarse the file system's clock."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_highest_version_serves_and_only_it_is_loaded(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    for version in (1, 10, 9):
        put(tmp_path, "doubler", version)
    loader.refresh()
    assert states(loader.table()) == {
        ("doubler", 10): "READY",
        ("doubler", 9): "UNAVAILABLE",
        ("doubler", 1): "UNAVAILABLE",
    }
    assert row_of(loader, "doubler", 9).reason == "version 10 serves"
    assert loads == [tmp_path / "doubler" / "10" / "model.onnx"]
    (y, _) = loader.versions["doubler", 10].session.run([X])
    assert (y == 2).all()


def test_folder_whose_name_is_no_models_is_told_once(
    tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "MyModel", 1)
    (tmp_path / "lost+found").mkdir()
    for _ in range(2):
        loader.refresh()
    assert loader.table().versions == ()
    said = "folder 'MyModel' is ignored: a model's name is 1 to 64 of a-z, 0-9, - and _"
    assert [record.message for record in caplog.records] == [said]


def test_row_of_a_ready_version_tells_how_it_serves(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    networks.save(networks.doubler(batched=False), tmp_path, "fixed")
    networks.save(networks.classifier(), tmp_path, "digits")
    loader.refresh()
    digits = row_of(loader, "digits", 1)
    assert digits.document is not None
    assert digits.provider == "CPUExecutionProvider"
    assert (digits.batched, digits.max_batch_size, digits.max_queue_delay_ms) == (True, 32, 5.0)
    assert [spec.name for spec in (*digits.inputs, *digits.outputs)] == ["image", "probabilities"]
    assert row_of(loader, "doubler", 1).document is None
    assert (row_of(loader, "fixed", 1).batched, row_of(loader, "fixed", 1).max_batch_size) == (False, 1)


def test_row_tells_which_part_of_the_network_another_provider_runs(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU: here everything runs on the CPU, and what does is recorded only where it could be otherwise.
    monkeypatch.setattr(sessions, "nodes", lambda _: {"CPUExecutionProvider": 310, "AnotherExecutionProvider": 10})
    networks.save(networks.classifier(), tmp_path, "digits")
    loader.refresh()
    assert row_of(loader, "digits", 1).reason == "10 of 320 nodes run on AnotherExecutionProvider"


def test_buckets_of_a_model_are_told_to_the_front_ends(tmp_path: Path, loader: Loader) -> None:
    networks.save(networks.segmenter(), tmp_path, "colours")
    (tmp_path / "colours" / "model.toml").write_text("buckets = [[64, 64], [32, 48]]\n")
    loader.refresh()
    assert row_of(loader, "colours", 1).buckets.sizes == ((32, 48), (64, 64))


def test_wrong_bucket_keeps_only_its_model_from_serving(tmp_path: Path, loader: Loader) -> None:
    networks.save(networks.segmenter(), tmp_path, "colours")
    put(tmp_path, "other", 1)
    settings = tmp_path / "colours" / "model.toml"
    settings.write_text("buckets = [[64, 66]]\n")
    loader.refresh()
    assert states(loader.table()) == {("colours", 1): "UNAVAILABLE", ("other", 1): "READY"}
    assert "[64, 66]" in row_of(loader, "colours", 1).reason
    assert "multiples of 4" in row_of(loader, "colours", 1).reason
    settings.write_text("buckets = [[64, 64]]\n")
    loader.refresh()
    settings.write_text("buckets = [[64, 66]]\n")
    loader.refresh()
    assert row_of(loader, "colours", 1).buckets.sizes == ((64, 64),)  # what serves stays as it was loaded


LIKE = {(480, 640): 50.0, (472, 640): 50.0}


def learning(root: Path, monkeypatch: pytest.MonkeyPatch, tables: list[Table]) -> Loader:
    """A loader of a model that learns its buckets, on a device where batches pay."""
    networks.save(networks.segmenter(), root, "colours")
    (root / "colours" / "model.toml").write_text("buckets = 'auto'\n")
    monkeypatch.setattr(session_builder, "pays", lambda seconds: True)
    loader = Loader(Source(root), Config(), tables.append)
    loader.refresh()
    return loader


def test_each_batch_size_of_a_learnt_bucket_has_run_before_front_ends_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: list[Table]
) -> None:
    loader, ran = learning(tmp_path, monkeypatch, tables), []
    assert loader.versions["colours", 1].learns
    monkeypatch.setattr(model_loader, "warm", lambda session, shape, most: ran.append((shape, most, len(tables))))
    before = len(tables)
    loader.choose_buckets("colours", 1, LIKE)
    fitting = Config().batching.max_batch_pixels // (480 * 640)
    most = min(fitting, loader.versions["colours", 1].profiles[0].batch_size)
    assert ran == [((480, 640, 3), most, before)]
    (row,) = tables[-1].versions
    assert len(tables) == before + 1
    assert (row.buckets.sizes, row.buckets.most_padding) == (((480, 640),), 1.25)
    loader.choose_buckets("colours", 1, LIKE)
    assert len(ran) == 1  # nothing has changed
    loader.choose_buckets("colours", 2, LIKE)  # a version that has gone meanwhile


def test_bucket_that_does_not_run_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: list[Table], caplog: pytest.LogCaptureFixture
) -> None:
    loader = learning(tmp_path, monkeypatch, tables)

    def fails(session: Session, shape: tuple[int, ...], most: int) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(model_loader, "warm", fails)
    before = len(tables)
    loader.choose_buckets("colours", 1, LIKE)
    assert row_of(loader, "colours", 1).state == "READY"
    assert row_of(loader, "colours", 1).buckets.sizes == ()
    assert len(tables) == before
    assert any(record.exc_info and record.exc_info[0] is MemoryError for record in caplog.records)


def test_no_buckets_are_learnt_unless_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: list[Table]
) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    loader = learning(tmp_path, monkeypatch, tables)
    networks.save(networks.segmenter(), tmp_path, "others")
    loader.refresh()
    assert {model: loaded.learns for (model, _), loaded in loader.versions.items()} == {
        "colours": True,
        "letters": False,
        "others": False,
    }
    assert loader.versions["others", 1].profiles == ()


def test_corrupt_highest_falls_back_to_the_one_below_and_says_why(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "doubler", 2)
    put(tmp_path, "doubler", 3, corrupt=True)
    put(tmp_path, "other", 1)
    loader.refresh()
    assert row_of(loader, "doubler", 2).state == "READY"
    broken = row_of(loader, "doubler", 3)
    assert broken.state == "UNAVAILABLE"
    assert broken.reason.startswith("onnxruntime cannot load it: ")
    assert str(tmp_path) not in broken.reason
    assert row_of(loader, "other", 1).state == "READY"  # the rest of the repository serves


def test_file_that_fails_in_an_unheard_of_way_keeps_only_itself_from_serving(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "other", 1)
    real = sessions.load_on

    def fails(file: Path, device: Device, threads: int) -> Session:
        if file.parts[-3] == "doubler":
            raise IndexError(f"nobody thought of {file}")
        return real(file, device, threads)

    monkeypatch.setattr(sessions, "load_on", fails)
    loader.refresh()
    assert loader.table().complete
    assert states(loader.table()) == {("doubler", 1): "UNAVAILABLE", ("other", 1): "READY"}
    assert str(tmp_path) not in row_of(loader, "doubler", 1).reason
    assert any(record.exc_info and record.exc_info[0] is IndexError for record in caplog.records)


def test_document_on_a_network_without_inputs_keeps_only_itself_from_serving(tmp_path: Path, loader: Loader) -> None:
    model = networks.classifier()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 10), np.float32), "constant"))
    del graph.node[:], graph.input[:]
    graph.node.append(helper.make_node("Identity", ["constant"], ["probabilities"]))
    networks.save(model, tmp_path, "constant")
    put(tmp_path, "doubler", 1)
    loader.refresh()
    assert row_of(loader, "constant", 1).reason == "0 inputs, want 1 to 64"
    assert row_of(loader, "doubler", 1).state == "READY"


def test_model_of_which_nothing_loads_is_listed_with_the_reason(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1, corrupt=True)
    (tmp_path / "empty" / "4").mkdir(parents=True)
    loader.refresh()
    table = loader.table()
    assert set(states(table).values()) == {"UNAVAILABLE"}
    assert row_of(loader, "empty", 4).reason == "model.onnx is missing"
    assert table.complete
    assert not table.ready


def test_failed_file_is_not_tried_again_until_it_changes(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    file = put(tmp_path, "doubler", 1, corrupt=True)
    for _ in range(3):
        loader.refresh()
    assert len(loads) == 1
    touch_later(file)
    loader.refresh()
    assert len(loads) == 2
    put(tmp_path, "doubler", 1)
    loader.refresh()
    assert len(loads) == 3
    assert row_of(loader, "doubler", 1).state == "READY"


def test_loaded_file_is_not_loaded_again_until_it_changes(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    put(tmp_path, "doubler", 1)
    for _ in range(3):
        loader.refresh()
    assert len(loads) == 1


def test_new_version_takes_over_and_the_old_one_stays_until_dropped(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    old = loader.versions["doubler", 1]
    put(tmp_path, "doubler", 2)
    loader.refresh()
    assert row_of(loader, "doubler", 2).state == "READY"
    assert row_of(loader, "doubler", 1).state == "UNAVAILABLE"
    assert loader.versions["doubler", 1] is old
    assert loader.is_retired("doubler", 1)
    assert not loader.is_retired("doubler", 2)
    loader.drop("doubler", 1)
    assert set(loader.versions) == {("doubler", 2)}
    assert not loader.is_retired("doubler", 1)
    loader.drop("doubler", 1)  # once more does no harm


def test_who_reads_the_versions_reads_what_was_there(tmp_path: Path, loader: Loader) -> None:
    """Other threads read them while the loader's changes them."""
    put(tmp_path, "doubler", 1)
    loader.refresh()
    before = loader.versions
    put(tmp_path, "doubler", 2)
    loader.refresh()
    assert list(before) == [("doubler", 1)]
    both = loader.versions
    loader.drop("doubler", 1)
    assert list(both) == [("doubler", 1), ("doubler", 2)]
    assert list(loader.versions) == [("doubler", 2)]


async def until_alone(engine: Engine, model: str, version: int) -> None:
    """Waits until the versions before are dropped: what is published goes through the loop, and back to the loader."""
    until = time.monotonic() + 20
    while list(engine._loader.versions) != [(model, version)] or engine._publication.unreleased:
        assert time.monotonic() < until, f"version {version} does not replace the one before"
        await asyncio.sleep(0.001)


def test_engine_drops_a_released_version_in_the_thread_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could take out the version that is being put back at that moment."""
    threads: list[str] = []
    drop = Loader.drop

    def noted(self: Loader, model: str, version: int) -> None:
        threads.append(threading.current_thread().name)
        drop(self, model, version)

    monkeypatch.setattr(Loader, "drop", noted)

    async def play() -> None:
        engine = Engine(Source(tmp_path), Config())
        for version in (1, 2):
            put(tmp_path, "doubler", version)
            await engine.refresh()
        await until_alone(engine, "doubler", 2)

    asyncio.run(play())
    assert threads
    assert all(name.startswith("load") for name in threads)


def test_engine_keeps_nothing_of_versions_that_are_gone(tmp_path: Path) -> None:
    """A server whose models are replaced every minute must not grow. Each version once left 5 kB."""

    async def replaced(engine: Engine, version: int) -> None:
        networks.save(networks.classifier(), tmp_path, "letters", version)
        shutil.rmtree(tmp_path / "letters" / str(version - 1), ignore_errors=True)
        await engine.refresh()
        await until_alone(engine, "letters", version)

    def objects() -> Counter[str]:
        gc.collect()
        named = (f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
        return Counter(name for name in named if name.startswith("convoy."))

    async def play() -> Counter[str]:
        engine = Engine(Source(tmp_path), load(None, ["server.keep_metrics_seconds=0"]))
        await replaced(engine, 1)
        await replaced(engine, 2)
        before = objects()
        for version in range(3, 6):
            await replaced(engine, version)
        return objects() - before

    assert not asyncio.run(play())


def test_late_release_does_not_drop_a_version_that_serves_again(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    shutil.rmtree(tmp_path / "doubler")
    loader.refresh()
    put(tmp_path, "doubler", 1)
    loader.refresh()
    serving = loader.versions["doubler", 1]
    loader.drop("doubler", 1)  # meant for the version that was there before
    assert loader.versions["doubler", 1] is serving


def test_old_version_serves_while_the_new_one_loads(tmp_path: Path, loader: Loader, tables: list[Table]) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    tables.clear()
    put(tmp_path, "doubler", 2)
    loader.refresh()
    served = [table.serving("doubler").version for table in tables]
    assert (served, served[-1]) == (sorted(served), 2)
    assert all(table.serving("doubler").state == "READY" for table in tables)
    assert {("doubler", 1): "READY", ("doubler", 2): "LOADING"} in [states(table) for table in tables]


def test_corrupt_new_version_leaves_the_old_one_serving(tmp_path: Path, loader: Loader, tables: list[Table]) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    old = loader.versions["doubler", 1]
    put(tmp_path, "doubler", 2, corrupt=True)
    loader.refresh()
    assert loader.versions["doubler", 1] is old
    assert not loader.is_retired("doubler", 1)
    assert all(table.serving("doubler").version == 1 for table in tables[-2:])


def test_version_whose_folder_goes_makes_way_for_the_one_below(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "doubler", 2)
    loader.refresh()
    shutil.rmtree(tmp_path / "doubler" / "2")
    loader.refresh()
    assert states(loader.table()) == {("doubler", 1): "READY"}
    assert loader.is_retired("doubler", 2)


def test_file_replaced_in_place_is_loaded_again(tmp_path: Path, loader: Loader) -> None:
    networks.save(networks.classifier(), tmp_path, "digits")
    loader.refresh()
    old = loader.versions["digits", 1]
    networks.save(networks.classifier(labels="ABCDEFGHIJ"), tmp_path, "digits")
    loader.refresh()
    assert loader.versions["digits", 1] is not old
    document = row_of(loader, "digits", 1).document
    assert document is not None
    assert document.labels[0] == "A"
    assert row_of(loader, "digits", 1).state == "READY"
    assert not loader.is_retired("digits", 1)


def test_removed_model_leaves_the_table_and_stays_until_dropped(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "other", 1)
    loader.refresh()
    shutil.rmtree(tmp_path / "doubler")
    loader.refresh()
    assert states(loader.table()) == {("other", 1): "READY"}
    assert loader.is_retired("doubler", 1)
    put(tmp_path, "doubler", 1)
    loader.refresh()
    assert row_of(loader, "doubler", 1).state == "READY"
    assert not loader.is_retired("doubler", 1)


def test_wrong_settings_stop_their_model_alone_and_putting_them_right_starts_it(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "other", 1)
    settings = tmp_path / "doubler" / "model.toml"
    settings.write_text("max_batch_sizes = 4\n")
    loader.refresh()
    assert row_of(loader, "doubler", 1).state == "UNAVAILABLE"
    assert "model.toml" in row_of(loader, "doubler", 1).reason
    assert "max_batch_sizes" in row_of(loader, "doubler", 1).reason
    assert row_of(loader, "other", 1).state == "READY"
    settings.write_text("max_batch_size = 4\nmax_queue_delay_ms = 0.0\nmax_queue = 7\n")
    loader.refresh()
    limits = loader.versions["doubler", 1].limits
    assert (limits.max_batch_size, limits.max_queue_delay, limits.max_queue) == (4, 0.0, 7)


def test_settings_that_change_are_those_it_serves_with(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    settings = tmp_path / "doubler" / "model.toml"
    settings.write_text("max_batch_size = 3\n")
    loader.refresh()
    assert loader.versions["doubler", 1].limits.max_batch_size == 3
    assert row_of(loader, "doubler", 1).max_batch_size == 3
    assert len(loads) == 2
    settings.write_text("# in other words\nmax_batch_size = 3\n")
    loader.refresh()
    assert len(loads) == 2
    settings.unlink()
    loader.refresh()
    assert row_of(loader, "doubler", 1).max_batch_size == 32


def test_version_never_stops_serving_while_its_settings_change(
    tmp_path: Path, loader: Loader, tables: list[Table]
) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    tables.clear()
    (tmp_path / "doubler" / "model.toml").write_text("max_batch_size = 3\n")
    loader.refresh()
    assert [states(table) for table in tables] == [{("doubler", 1): "READY"}] * len(tables)
    assert tables[-1].serving("doubler").max_batch_size == 3


def test_settings_that_become_wrong_leave_the_old_ones_serving(
    tmp_path: Path, loader: Loader, loads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "doubler", 1)
    settings = tmp_path / "doubler" / "model.toml"
    settings.write_text("max_batch_size = 3\n")
    loader.refresh()
    old = loader.versions["doubler", 1]
    settings.write_text("max_batch_sizes = 4\n")
    for _ in range(3):
        loader.refresh()
    assert row_of(loader, "doubler", 1).state == "READY"
    assert loader.versions["doubler", 1] is old
    assert len(loads) == 1
    (told,) = (record.getMessage() for record in caplog.records if "max_batch_sizes" in record.getMessage())
    assert "version 1 continues to serve" in told  # once, not at every look
    settings.write_text("max_batch_size = 4\n")
    loader.refresh()
    assert row_of(loader, "doubler", 1).max_batch_size == 4


def test_serving_version_that_cannot_be_loaded_again_goes_on_as_it_was_loaded(
    tmp_path: Path, loader: Loader, loads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "doubler", 2)
    loader.refresh()
    old = loader.versions["doubler", 2]
    put(tmp_path, "doubler", 2, corrupt=True)
    for _ in range(3):
        loader.refresh()
    assert states(loader.table()) == {("doubler", 2): "READY", ("doubler", 1): "UNAVAILABLE"}
    assert loader.versions["doubler", 2] is old
    assert len(loads) == 2
    assert [record for record in caplog.records if "stays as it was loaded" in record.getMessage()]
    touch_later(put(tmp_path, "doubler", 2))
    loader.refresh()
    assert loader.versions["doubler", 2] is not old


def test_failed_version_is_tried_again_with_other_settings(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    put(tmp_path, "doubler", 1, corrupt=True)
    settings = tmp_path / "doubler" / "model.toml"
    settings.write_text('provider = "auto"\n')
    loader.refresh()
    loader.refresh()
    assert len(loads) == 1
    settings.write_text('provider = "cpu"\n')  # the provider may have been what failed
    loader.refresh()
    assert len(loads) == 2


def test_folder_that_becomes_unreadable_leaves_its_model_serving(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    put(tmp_path, "other", 1)
    real = Path.iterdir

    def denied(folder: Path) -> Iterator[Path]:
        if folder.name == "doubler":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", denied)
    loader.refresh()
    assert states(loader.table()) == {("doubler", 1): "READY", ("other", 1): "READY"}


def test_settings_of_the_server_hold_where_a_model_has_none(tmp_path: Path) -> None:
    config = load(None, ["batching.max_batch_size=9", "batching.max_queue_delay_ms=1.5", "batching.max_queue=90"])
    loader = Loader(Source(tmp_path), config, lambda table: None)
    put(tmp_path, "doubler", 1)
    loader.refresh()
    limits = loader.versions["doubler", 1].limits
    assert (limits.max_batch_size, limits.max_queue_delay, limits.max_queue) == (9, pytest.approx(0.0015), 90)


def test_first_look_is_complete_only_when_everything_is_loaded(
    tmp_path: Path, loader: Loader, tables: list[Table]
) -> None:
    for name in ("first", "second", "third"):
        put(tmp_path, name, 1)
    loader.refresh()
    assert [table.complete for table in tables] == [False] * (len(tables) - 1) + [True]
    assert set(states(tables[0]).values()) == {"LOADING"}
    assert set(states(tables[-1]).values()) == {"READY"}
    # Each serves as soon as it can, not when the last has loaded.
    assert [list(states(table).values()).count("READY") for table in tables][-2:] == [3, 3]
    assert {1, 2} <= {list(states(table).values()).count("READY") for table in tables}


def test_models_that_come_later_are_loading_until_they_serve(
    tmp_path: Path, loader: Loader, tables: list[Table]
) -> None:
    loader.refresh()
    tables.clear()
    put(tmp_path, "first", 1)
    for version in (1, 2):
        put(tmp_path, "second", version)
    loader.refresh()
    assert states(tables[0]) == {
        ("first", 1): "LOADING",
        ("second", 2): "LOADING",
        ("second", 1): "UNAVAILABLE",
    }
    passed_over = [row.reason for table in tables for row in table.versions if row.state == "UNAVAILABLE"]
    assert set(passed_over) == {"version 2 is loading", "version 2 serves"}
    assert states(tables[-1])["first", 1] == states(tables[-1])["second", 2] == "READY"


def test_table_is_published_only_when_it_changes(tmp_path: Path, loader: Loader, tables: list[Table]) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    count = len(tables)
    assert tables[-1] == loader.table()
    loader.refresh()
    assert len(tables) == count
    (tmp_path / "doubler" / "2").mkdir()
    loader.refresh()
    assert len(tables) == count + 1


def test_unreadable_repository_leaves_what_is_loaded_serving(tmp_path: Path, tables: list[Table]) -> None:
    root = tmp_path / "repository"
    loader = Loader(Source(root), Config(), tables.append)
    put(root, "doubler", 1)
    loader.refresh()
    root.rename(tmp_path / "elsewhere")
    loader.refresh()
    assert loader.table().serving("doubler").version == 1


def test_empty_repository_is_complete_and_not_ready(loader: Loader, tables: list[Table]) -> None:
    loader.refresh()
    assert tables[-1] == Table((), complete=True)
    assert not tables[-1].ready


@pytest.mark.parametrize("disturb", [lambda root: (root / "Notes").mkdir(), lambda root: (root / "README").touch()])
def test_what_is_no_model_is_passed_over(tmp_path: Path, loader: Loader, disturb: Callable[[Path], None]) -> None:
    put(tmp_path, "doubler", 1)
    disturb(tmp_path)
    loader.refresh()
    assert states(loader.table()) == {("doubler", 1): "READY"}


def test_provider_that_is_not_there_keeps_the_model_from_serving(tmp_path: Path, loader: Loader) -> None:
    if "CUDAExecutionProvider" in sessions.onnxruntime.get_available_providers():
        pytest.skip("CUDA is there")
    put(tmp_path, "doubler", 1)
    (tmp_path / "doubler" / "model.toml").write_text('provider = "cuda"\n')
    loader.refresh()
    assert "provider cuda was requested" in row_of(loader, "doubler", 1).reason


def test_metric_tells_which_versions_serve(tmp_path: Path, loader: Loader) -> None:
    def ready(version: int) -> float | None:
        labels = {"model": "measured", "version": str(version), "provider": "CPUExecutionProvider", "device": "0"}
        return REGISTRY.get_sample_value("convoy_model_ready", labels)

    put(tmp_path, "measured", 1)
    loader.refresh()
    assert (ready(1), ready(2)) == (1, None)
    put(tmp_path, "measured", 2)
    loader.refresh()
    assert (ready(1), ready(2)) == (0, 1)
    shutil.rmtree(tmp_path / "measured")
    loader.refresh()
    assert (ready(1), ready(2)) == (0, 0)


def test_metrics_have_the_objective_that_is_set_or_else_the_default(tmp_path: Path, loader: Loader) -> None:
    for name, settings in (("hasty", "latency_objective_ms = 20\n"), ("patient", "")):
        put(tmp_path, name, 1)
        (tmp_path / name / "model.toml").write_text(settings)
    loader.refresh()
    found = {
        name: REGISTRY.get_sample_value("convoy_model_latency_objective_seconds", {"model": name, "version": "1"})
        for name in ("hasty", "patient")
    }
    assert found["hasty"] == row_of(loader, "hasty", 1).latency_objective == 0.02
    assert found["patient"] == row_of(loader, "patient", 1).latency_objective
    assert found["patient"] is not None
    assert found["patient"] >= 0.1


@pytest.mark.parametrize(("provider", "offered", "shown"), [("auto", True, 1), ("auto", False, 0), ("cpu", True, 0)])
def test_metric_tells_that_a_version_fell_back_to_the_cpu(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch, provider: str, offered: bool, shown: int
) -> None:
    # As where onnxruntime offers CUDA and no device could be used.
    monkeypatch.setattr(version_states, "gpu_offered", lambda asked: offered and asked != "cpu")
    put(tmp_path, "fallen", 1)
    (tmp_path / "fallen" / "model.toml").write_text(f'provider = "{provider}"\n')
    loader.refresh()
    labels = {"model": "fallen", "version": "1", "device": "0"}
    assert REGISTRY.get_sample_value("convoy_model_fallback", labels) == shown


def test_failed_example_is_counted_and_other_failures_are_not(tmp_path: Path, loader: Loader) -> None:
    def failures(model: str) -> float | None:
        return REGISTRY.get_sample_value("convoy_example_failures_total", {"model": model, "version": "1"})

    model = networks.classifier()
    sealed(model)  # its properties are those of the file
    weights = np.ascontiguousarray(networks.classifier_weights()[:, ::-1])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    networks.save(model, tmp_path, "mistaken")
    put(tmp_path, "broken", 1, corrupt=True)
    put(tmp_path, "sound", 1)
    loader.refresh()
    assert "example gets another answer" in row_of(loader, "mistaken", 1).reason
    assert (failures("mistaken"), failures("broken"), failures("sound")) == (1, None, 0)


def test_metric_is_0_for_what_should_serve_and_cannot_until_it_can(tmp_path: Path, loader: Loader) -> None:
    def unready(version: str) -> float | None:
        labels = {"model": "spoiled", "version": version, "provider": "", "device": "0"}
        return REGISTRY.get_sample_value("convoy_model_ready", labels)

    (tmp_path / "spoiled").mkdir()
    loader.refresh()
    assert (unready(""), unready("1")) == (0, None)
    put(tmp_path, "spoiled", 1, corrupt=True)
    loader.refresh()
    assert (unready(""), unready("1")) == (None, 0)
    put(tmp_path, "spoiled", 2)
    loader.refresh()
    assert (unready("1"), unready("2")) == (0, None)
    touch_later(put(tmp_path, "spoiled", 1))
    loader.refresh()
    assert (unready("1"), unready("2")) == (None, None)  # 2 serves, so 1 need not
    put(tmp_path, "spoiled", 3, corrupt=True)
    loader.refresh()
    assert unready("3") == 0
    shutil.rmtree(tmp_path / "spoiled")
    loader.refresh()
    assert unready("3") is None


def test_pinned_version_serves_before_the_highest_stops(tmp_path: Path, loader: Loader, tables: list[Table]) -> None:
    for version in (3, 4):
        put(tmp_path, "doubler", version)
    loader.refresh()
    assert states(loader.table()) == {("doubler", 3): "UNAVAILABLE", ("doubler", 4): "READY"}
    seen = len(tables)
    (tmp_path / "doubler" / "model.toml").write_text("versions = [3]\n")
    loader.refresh()
    assert states(loader.table()) == {("doubler", 3): "READY", ("doubler", 4): "UNAVAILABLE"}
    assert row_of(loader, "doubler", 4).reason == "version 3 serves"
    assert all(table.serving("doubler") for table in tables[seen:])
    (tmp_path / "doubler" / "model.toml").write_text("versions = [3, 4]\n")
    loader.refresh()
    assert loader.table().serving("doubler").version == 4
    assert loader.table().serving("doubler", 3).version == 3


def test_folder_without_a_version_is_listed_and_says_why(
    tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "model.onnx").write_bytes(b"network")
    loader.refresh()
    reason = "'model.onnx' is in no version folder: move it to 1/model.onnx in the model's folder"
    assert row_of(loader, "flat", 0).reason == reason
    assert f"model flat is not served: {reason}" in caplog.messages
    put(tmp_path, "flat", 1)
    loader.refresh()
    assert states(loader.table()) == {("flat", 1): "READY"}
    shutil.rmtree(tmp_path / "flat" / "1")
    loader.refresh()
    assert states(loader.table()) == {("flat", 0): "UNAVAILABLE"}


def test_data_beside_a_model_file_are_part_of_its_version(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    file = put(tmp_path, "doubler", 1)
    loader.refresh()
    data = file.with_name("model.onnx.data")
    data.write_bytes(b"weights")
    loader.refresh()
    assert len(loads) == 2
    touch_later(data)
    loader.refresh()
    assert len(loads) == 3
    assert states(loader.table()) == {("doubler", 1): "READY"}


def test_failed_version_is_tried_again_when_its_data_come(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    file = put(tmp_path, "doubler", 1, corrupt=True)
    for _ in range(2):
        loader.refresh()
    assert len(loads) == 1
    file.with_name("weights.bin").write_bytes(b"weights")
    loader.refresh()
    assert len(loads) == 2


def test_what_the_server_writes_beside_a_model_is_no_part_of_its_version(
    tmp_path: Path, loader: Loader, loads: list[Path]
) -> None:
    file = put(tmp_path, "doubler", 1)
    loader.refresh()
    for name in ("profile.json", ".profile.json-7"):
        file.with_name(name).write_text("[]")
    loader.refresh()
    assert len(loads) == 1


def test_version_whose_folder_cannot_be_read_says_so(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "doubler", 1)
    locked = put(tmp_path, "doubler", 2)
    real = Path.stat

    def denied(file: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if file == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file, follow_symlinks=follow_symlinks)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", denied)
        loader.refresh()
    assert states(loader.table()) == {("doubler", 2): "UNAVAILABLE", ("doubler", 1): "READY"}
    assert row_of(loader, "doubler", 2).reason == "its folder cannot be read: Permission denied"
    loader.refresh()
    assert row_of(loader, "doubler", 2).state == "READY"


def test_repository_that_is_away_is_told_once(
    tmp_path: Path, tables: list[Table], caplog: pytest.LogCaptureFixture
) -> None:
    loader = Loader(Source(tmp_path / "away"), Config(), tables.append)
    for _ in range(3):
        loader.refresh()
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1


def test_where_a_link_of_data_leads_is_not_told(tmp_path: Path) -> None:
    error = RuntimeError('External data path escapes model directory, resolved path: "/srv/blobs/b"')
    shown = sessions._first_line(error, tmp_path / "model.onnx")
    assert "outside its folder" in shown
    assert "/srv" not in shown


def test_model_whose_folder_cannot_be_read_is_listed_with_the_reason_and_comes_later(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "locked", 3)
    real = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    loader.refresh()
    row = row_of(loader, "locked", 0)
    assert (row.state, row.reason) == ("UNAVAILABLE", "its folder cannot be read: Permission denied")
    assert row_of(loader, "doubler", 1).state == "READY"
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        loader.table().serving("locked")
    monkeypatch.undo()
    loader.refresh()
    assert row_of(loader, "locked", 3).state == "READY"
    assert [row.version for row in loader.table().versions if row.model == "locked"] == [3]


def test_failed_version_is_tried_again_after_ever_longer_whiles(tmp_path: Path, loads: list[Path]) -> None:
    now = 0.0
    loader = Loader(Source(tmp_path), Config(), lambda table: None, clock=lambda: now)
    put(tmp_path, "doubler", 1, corrupt=True)
    tried = []
    for now in range(0, 2500, 10):
        loader.refresh()
        if len(loads) > len(tried):
            tried.append(now)
    assert tried == [0, 60, 180, 420, 900, 1500, 2100]
    assert row_of(loader, "doubler", 1).state == "UNAVAILABLE"


def test_slow_copy_is_named_in_the_log_once_in_a_while_and_serves_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    loader = Loader(Source(tmp_path), Config(), lambda table: None, clock=lambda: now)
    file = put(tmp_path, "doubler", 1)
    whole = file.read_bytes()
    for size in range(10, 110):
        now += 0.2
        file.write_bytes(whole[:size])
        loader.refresh()
    assert sum("is not served" in record.message for record in caplog.records if record.levelname == "ERROR") == 1
    file.write_bytes(whole)
    loader.refresh()
    assert row_of(loader, "doubler", 1).state == "READY"


def test_profile_that_was_wrong_is_corrected_for_front_ends_and_for_the_next_start(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    # Where a pause makes a size seem slow, larger ones are not measured.
    monkeypatch.setattr(profiling, "_time", lambda session, values: BatchTime(0.001, 0.001))
    file = networks.save(networks.classifier(), tmp_path, "digits", 1)
    loader.refresh()
    before = loader.versions["digits", 1]
    (profile,) = before.profiles
    loader.revise("digits", 1, profile.key, {size: 1.0 if size <= 4 else 9.0 for size in profile.batches})
    after = loader.versions["digits", 1]
    assert after.instances is before.instances
    assert row_of(loader, "digits", 1).batch_size == after.profiles[0].batch_size == 4
    assert row_of(loader, "digits", 1).row_seconds == pytest.approx(0.25)
    assert profiles.read(file.parent) == list(after.profiles)
    assert "its profile was wrong; batches of up to 4 are the most efficient" in caplog.text
    again = Loader(Source(tmp_path), Config(), lambda table: None)
    again.refresh()
    assert again.versions["digits", 1].profiles == after.profiles


def test_times_of_a_shape_without_a_profile_are_not_stored(tmp_path: Path, loader: Loader) -> None:
    file = networks.save(networks.classifier(), tmp_path, "digits", 1)
    loader.refresh()
    stored = profiles.read(file.parent)
    loader.revise("digits", 1, (((9, 9, 1), "uint8"),), {1: 1.0})
    loader.revise("gone", 1, stored[0].key, {1: 1.0})
    assert profiles.read(file.parent) == stored == list(loader.versions["digits", 1].profiles)


def test_withdrawn_version_makes_way_for_the_one_below_until_it_is_retried(tmp_path: Path, tables: list[Table]) -> None:
    clock = [0.0]
    loader = Loader(Source(tmp_path), Config(), tables.append, clock=lambda: clock[0])
    for version in (1, 2):
        put(tmp_path, "doubler", version)
    loader.refresh()
    loader.withdraw("doubler", 2)
    assert states(tables[-1]) == {("doubler", 2): "UNAVAILABLE", ("doubler", 1): "READY"}
    assert row_of(loader, "doubler", 2).reason.startswith("several of its inputs ended the engine")
    assert ("doubler", 2) not in loader.versions
    clock[0] = 61.0
    loader.refresh()
    assert states(tables[-1])["doubler", 2] == "READY"


def test_new_engine_does_not_load_a_withdrawn_version_at_once(tmp_path: Path, tables: list[Table]) -> None:
    put(tmp_path, "doubler", 1)
    file = put(tmp_path, "other", 1)
    loader = Loader(Source(tmp_path), Config(), tables.append, withdrawn=[("other", 1)])
    loader.refresh()
    assert states(tables[-1]) == {("doubler", 1): "READY", ("other", 1): "UNAVAILABLE"}
    touch_later(file)  # other files may be sound
    loader.refresh()
    assert states(tables[-1])["other", 1] == "READY"


def test_version_that_is_withdrawn_before_the_first_scan_does_not_serve(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    loader.withdraw("doubler", 1)
    loader.refresh()
    row = row_of(loader, "doubler", 1)
    assert row.state == "UNAVAILABLE"
    assert row.reason.startswith("several of its inputs ended the engine")


def test_version_that_is_gone_is_withdrawn_in_vain(tmp_path: Path, loader: Loader) -> None:
    loader.refresh()
    loader.withdraw("doubler", 1)
    assert loader.table().versions == ()


def test_unloaded_model_stops_serving_although_its_files_are_there(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    put(tmp_path, "other", 1)
    loader.refresh()
    loader.unload("doubler")
    for _ in range(2):
        row = row_of(loader, "doubler", 1)
        assert (row.state, row.reason) == ("UNAVAILABLE", "unloaded on request")
        assert row_of(loader, "other", 1).state == "READY"
        put(tmp_path, "doubler", 2)  # neither does a newer version
        loader.refresh()
    assert ("doubler", 1) in loader.versions, "requests in flight are answered by it"
    loader.drop("doubler", 1)
    assert ("doubler", 1) not in loader.versions
    with pytest.raises(ModelUnavailable, match="unloaded on request"):
        loader.outcome("doubler")


def test_unloaded_model_serves_again_once_it_is_loaded_on_request(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    loader.unload("doubler")
    loader.load("doubler")
    assert loader.outcome("doubler") == 1
    assert row_of(loader, "doubler", 1).state == "READY"


def test_model_that_was_unloaded_before_an_engine_died_stays_so(tmp_path: Path, loads: list[Path]) -> None:
    put(tmp_path, "doubler", 1)
    loader = Loader(Source(tmp_path), Config(), lambda table: None, unloaded=["doubler"])
    loader.refresh()
    assert loads == []
    assert row_of(loader, "doubler", 1).reason == "unloaded on request"
    assert loader.table().complete


def test_folder_that_went_and_came_stays_unloaded(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    loader.unload("doubler")
    shutil.rmtree(tmp_path / "doubler")
    loader.refresh()
    put(tmp_path, "doubler", 1)
    loader.refresh()
    assert row_of(loader, "doubler", 1).reason == "unloaded on request"


def test_load_sees_new_files_at_once_and_says_why_the_newest_does_not_serve(tmp_path: Path, loader: Loader) -> None:
    loader.refresh()
    put(tmp_path, "doubler", 1)
    loader.load("doubler")
    assert loader.outcome("doubler") == 1
    put(tmp_path, "doubler", 2, corrupt=True)
    loader.load("doubler")
    with pytest.raises(ModelUnavailable, match="version 2 of model 'doubler' is not loaded: onnxruntime cannot"):
        loader.outcome("doubler")
    assert row_of(loader, "doubler", 1).state == "READY"


def test_load_tries_again_what_has_failed(tmp_path: Path, loader: Loader, loads: list[Path]) -> None:
    put(tmp_path, "doubler", 1, corrupt=True)
    for times, look in enumerate([loader.refresh, lambda: loader.load("doubler"), lambda: loader.load("doubler")], 1):
        look()
        loader.refresh()
        assert len(loads) == times


def test_load_of_nothing_says_so(tmp_path: Path, loader: Loader) -> None:
    (tmp_path / "empty" / "1").mkdir(parents=True)
    put(tmp_path, "wrong", 1)
    (tmp_path / "wrong" / "model.toml").write_text("max_batch_size = 0")
    for model, kind, words in [
        ("nobody", UnknownModel, "model 'nobody' is not in the repository"),
        ("empty", UnknownModel, "model 'empty' has no version with a model.onnx that should serve"),
        ("wrong", ModelUnavailable, "model 'wrong' is not loaded: model.toml: .*max_batch_size is 0"),
    ]:
        loader.load(model)
        with pytest.raises(kind, match=words):
            loader.outcome(model)
    with pytest.raises(UnknownModel, match="model 'nobody' is not in the repository"):
        loader.unload("nobody")
    shutil.rmtree(tmp_path)
    loader.load("wrong")
    with pytest.raises(ModelUnavailable, match="the model repository cannot be read: No such file or directory"):
        loader.outcome("wrong")


def test_version_that_stays_as_it_was_because_its_new_file_is_bad_is_no_success(tmp_path: Path, loader: Loader) -> None:
    put(tmp_path, "doubler", 1)
    loader.refresh()
    put(tmp_path, "doubler", 1, corrupt=True)
    loader.load("doubler")
    assert row_of(loader, "doubler", 1).state == "READY"
    with pytest.raises(ModelUnavailable, match="version 1 of model 'doubler' is not loaded: onnxruntime cannot"):
        loader.outcome("doubler")
