"""A full disk costs metrics, never the process that counts."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convoy.service.client.client import Client
from convoy.service.metric_files import Counts, collect, forget_process
from tests.service import networks
from tests.service.running import Server


def _full(descriptor: int, offset: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def _write(counts: Counts, key: str, value: float) -> None:
    counts.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]


def _read(counts: Counts, key: str) -> float:
    return float(counts.read_value(key)[0])  # type: ignore[no-untyped-call]


def _stored(path: str) -> list[tuple[str, float]]:
    entries = Counts.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
    return [(entry[0], entry[1]) for entry in entries]


def test_a_disk_full_at_the_start_leaves_no_file_and_counting_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _full)
    counts = Counts(str(tmp_path / "counter_1.db"))
    for number in range(2000):
        _write(counts, f"key {number}", number)
    assert _read(counts, "key 1999") == 1999
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_keeps_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "counter_1.db")
    counts = Counts(path)
    _write(counts, "first", 3.0)
    monkeypatch.setattr(os, "posix_fallocate", _full)
    for number in range(2000):
        _write(counts, f"key {number}", number)
    assert (_read(counts, "first"), _read(counts, "key 1999")) == (3.0, 1999)
    assert ("first", 3.0) in _stored(path)


def test_a_scrape_while_a_file_is_made_reads_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scrapes = []
    reserve = os.posix_fallocate

    def scraped(descriptor: int, offset: int, length: int) -> None:
        scrapes.append(collect(tmp_path))  # the file is there, and still empty
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", scraped)
    Counts(str(tmp_path / "counter_1.db"))
    assert scrapes == [[]]


def test_the_blocks_of_a_file_are_reserved(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    counts = Counts(str(path))
    for number in range(2000):
        _write(counts, f"key {number}", 1.0)
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert len(_stored(str(path))) == 2000


def test_forgotten_entries_are_gone_and_the_others_count_on(tmp_path: Path) -> None:
    path = str(tmp_path / "counter_1.db")
    counts = Counts(path)
    for number in range(500):
        _write(counts, f"key {number}", number)
    counts.forget(lambda key: int(key.split()[1]) % 2 == 1)
    assert _stored(path) == [(f"key {number}", number) for number in range(0, 500, 2)]
    _write(counts, "key 4", 44)
    _write(counts, "key 5", 55)  # counted again: it starts anew
    assert _read(counts, "key 4") == 44
    assert dict(_stored(path))["key 5"] == 55
    assert [file.name for file in tmp_path.iterdir()] == ["counter_1.db"]


def test_nothing_is_forgotten_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "counter_1.db")
    counts = Counts(path)
    _write(counts, "key", 1)
    monkeypatch.setattr(os, "posix_fallocate", _full)
    counts.forget(lambda key: True)
    _write(counts, "key", 2)
    assert _stored(path) == [("key", 2)]
    assert [file.name for file in tmp_path.iterdir()] == ["counter_1.db"]


def test_counts_of_the_dead_lie_in_one_file_each_counted_once(tmp_path: Path) -> None:
    for pid in range(1, 41):
        for kind, value in (("counter", 1.0), ("histogram", 2.0), ("gauge_max", float(pid)), ("gauge_livesum", 5.0)):
            _write(Counts(str(tmp_path / f"{kind}_{pid}.db")), '["m", "m", {"model": "a"}, ""]', value)
        forget_process(pid, tmp_path)
        forget_process(pid, tmp_path)  # a second time it has nothing
    assert sorted(file.name for file in tmp_path.iterdir()) == ["counter_0.db", "gauge_max_0.db", "histogram_0.db"]
    stored = {kind: _stored(str(tmp_path / f"{kind}_0.db"))[0][1] for kind in ("counter", "histogram", "gauge_max")}
    assert stored == {"counter": 40, "histogram": 80, "gauge_max": 40}


def test_file_of_the_dead_stays_where_it_cannot_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(Counts(str(tmp_path / "counter_7.db")), "key", 3)
    monkeypatch.setattr(os, "posix_fallocate", _full)
    forget_process(7, tmp_path)
    assert _stored(str(tmp_path / "counter_7.db")) == [("key", 3)]


def test_series_of_a_version_that_is_gone_go_and_those_that_serve_stay(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters", 1)
    settings = ["server.keep_metrics_seconds=0.1", "server.lame_duck_seconds=0", "repository.poll_seconds=0.2"]
    with Server(tmp_path, settings) as server, Client(server.grpc) as client:
        lines = []
        for version in range(2, 8):
            assert client.classify(np.zeros((8, 8), np.uint8), "letters").version == version - 1
            networks.save(networks.classifier(), tmp_path, "letters", version)
            server.wait_for_log(f"model letters version {version} serves")
            wait_until(lambda old=version - 1: server.total("convoy_images_total", version=str(old)) == 0)
            wait_until(lambda: not server.total("convoy_batch_size_count"))
            lines.append(len(server.samples()))
        # A version's series go file by file, and a scrape may come in between.
        wait_until(lambda: len(server.samples()) <= min(lines) + 5)
        assert client.classify(np.zeros((8, 8), np.uint8), "letters").version == 7
        assert server.total("convoy_images_total", version="7") == 1


def wait_until(holds: Callable[[], bool]) -> None:
    turn = threading.Event()
    for _ in range(2000):
        if holds():
            return
        turn.wait(0.02)
    raise AssertionError("it did not come about")
