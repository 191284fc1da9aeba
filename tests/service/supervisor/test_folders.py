"""Folders of servers that were killed are removed, those of running ones stay."""

import os
import signal
from pathlib import Path

import pytest

from convoy.service.supervisor import folders
from tests.service.running import Server


def test_folders_that_nobody_has_locked_are_removed_and_no_others(tmp_path: Path) -> None:
    running, lock = folders.made("convoy-", tmp_path)
    for name in ("convoy-killed", "convoy-killed-before-it-began", "convoys"):
        (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / "convoy-killed" / "file").write_text("x")
    (tmp_path / "convoy-link").symlink_to(tmp_path / "convoys")
    folders.remove_left("convoy-", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([running, tmp_path / "convoy-link", tmp_path / "convoys"])
    os.close(lock)
    folders.remove_left("convoy-", tmp_path)
    assert not running.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_server_once_the_next_has_started(
    quick_repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    environment = {"TMPDIR": str(tmp_path / "temporary"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for folder in environment.values():
        Path(folder).mkdir()

    def left() -> set[str]:
        found = [*(tmp_path / "temporary").iterdir(), *(tmp_path / "cache" / "convoy").glob("server-*")]
        return {folder.name for folder in found}

    with Server(quick_repository, ["server.lame_duck_seconds=0"], environment=environment) as server:
        first = left()
        assert {name.partition("-")[0] for name in first} == {"convoy", "server"}
        server.stop(number)
        assert left() == (first if number == signal.SIGKILL else set())
    with Server(quick_repository, ["server.lame_duck_seconds=0"], environment=environment):
        assert not first & left()
    assert left() == set()
