"""A version appears in a model repository as a whole or not at all."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convoy.models.errors import BadModelName
from convoy.models.export import publish


def visible(repository: Path) -> list[str]:
    """What a server would look at: everything but names with a dot in front."""
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if "/." not in str(path))


def test_versions_count_up_from_one(tmp_path: Path) -> None:
    paths = [publish.publish(f"model {i}".encode(), tmp_path, "digits") for i in range(3)]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [f"digits/{i}/model.onnx" for i in (1, 2, 3)]
    assert [path.read_text() for path in paths] == ["model 0", "model 1", "model 2"]
    assert publish.versions(tmp_path, "digits") == [1, 2, 3]


def test_next_version_is_one_above_the_highest_number(tmp_path: Path) -> None:
    for name in ("7", "12", "3", "012", "-20", "latest", ".99", "1e3"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        (tmp_path / "digits" / name / "model.onnx").touch()
    assert publish.publish(b"", tmp_path, "digits") == tmp_path / "digits" / "13" / "model.onnx"


def test_file_is_complete_and_synced_before_its_version_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert visible(tmp_path) in (["digits"], ["digits", "digits/1", "digits/1/model.onnx"])
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> Path:
        assert (source / "model.onnx").read_bytes() == b"content"
        assert synced == ["model.onnx", source.name]
        assert source.name.startswith(".")
        assert source.parent == target.parent  # so on the same file system
        return real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    publish.publish(b"content", tmp_path, "digits")
    assert synced[2:] == ["digits"]


@pytest.mark.parametrize("where", ["write", "sync", "rename"])
def test_what_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    publish.publish(b"first", tmp_path, "digits")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    if where == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    else:
        monkeypatch.setattr(publish, f"_{where}", fail)
    with pytest.raises(OSError, match="no space"):
        publish.publish(b"second", tmp_path, "digits")
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["1"]


def test_killed_process_leaves_no_version(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:
        os.fsync = lambda _: os._exit(9)  # as SIGKILL: nothing is cleaned up
        publish.publish(b"half", tmp_path, "digits")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert publish.versions(tmp_path, "digits") == []
    assert visible(tmp_path) == ["digits"]
    assert list((tmp_path / "digits").iterdir())  # else it was not killed halfway
    assert publish.publish(b"whole", tmp_path, "digits").parent.name == "1"


def test_two_at_once_get_different_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_looked = threading.Barrier(2, timeout=10)
    real, calls = publish.versions, iter(range(100))

    def look(repository: Path, name: str) -> list[int]:
        found = real(repository, name)
        if next(calls) < 2:  # so that both choose the same number first
            both_looked.wait()
        return found

    monkeypatch.setattr(publish, "versions", look)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda content: publish.publish(content, tmp_path, "digits"), (b"one", b"two")))
    assert sorted(path.parent.name for path in paths) == ["1", "2"]
    assert sorted(path.read_bytes() for path in paths) == [b"one", b"two"]
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("name", ["", "Digits", "a/b", "..", ".hidden", "a b", "x" * 65, "é"])
def test_name_that_a_repository_does_not_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadModelName, match="want 1 to 64 of a-z"):
        publish.publish(b"", tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_published_folder_can_be_read_by_others(tmp_path: Path) -> None:
    assert publish.publish(b"", tmp_path, "digits").parent.stat().st_mode & 0o555 == 0o555
