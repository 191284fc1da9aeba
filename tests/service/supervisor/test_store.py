"""The folder of a server's copies: private, and gone with the server however that ends."""

from pathlib import Path

import pytest

from convoy.service.errors import BadConfig
from convoy.service.supervisor.store import Store


def test_folder_ends_with_the_server_and_the_cache_stays(tmp_path: Path) -> None:
    with Store(str(tmp_path / "cache"), tmp_path) as store:
        assert store.cache == tmp_path / "cache"
        assert store.folder.parent == store.cache
        assert store.folder.stat().st_mode & 0o777 == 0o700
        (store.folder / "0").mkdir()
    assert list((tmp_path / "cache").iterdir()) == []


def test_folder_of_a_killed_server_is_removed_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "server-killed" / "0").mkdir(parents=True)
    with Store(str(tmp_path), tmp_path) as one, Store(str(tmp_path), tmp_path) as other:
        assert {path.name for path in tmp_path.iterdir()} == {one.folder.name, other.folder.name}


def test_usual_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with Store("", tmp_path) as store:
        assert store.cache == tmp_path / "user" / "convoy"


def test_folder_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, temporary = tmp_path / "user" / "convoy", tmp_path / "temporary"
    shared.mkdir(parents=True)
    temporary.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with Store("", temporary) as store:
        assert store.cache == temporary
    with pytest.raises(BadConfig, match=r"want a folder that only its owner, this user, may write"):
        Store(str(shared), temporary)


def test_configured_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match=r"repository.cache is .*cannot be used \(Not a directory\)"):
        Store(str(tmp_path / "file" / "cache"), tmp_path)


def test_user_without_a_home_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with Store("", tmp_path) as store:
        assert store.cache == tmp_path
