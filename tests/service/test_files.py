"""Only regular files inside the repository are read, whatever links lead to."""

import os
from pathlib import Path

import pytest

from convoy.service import files
from convoy.service.errors import BadModelFile


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "digits").mkdir(parents=True)
    return folder


def test_file_is_read(root: Path) -> None:
    file = root / "digits" / "model.toml"
    file.write_bytes(b"text")
    assert files.read(file, root, 4) == b"text"


def test_links_inside_the_repository_are_followed(root: Path) -> None:
    """As Kubernetes mounts a volume: each name leads to `..data`, which leads to the newest folder."""
    (root / "..2026_11_29").mkdir()
    (root / "..2026_11_29" / "model.toml").write_bytes(b"text")
    (root / "..data").symlink_to("..2026_11_29")
    (root / "digits" / "model.toml").symlink_to("../..data/model.toml")
    assert files.read(root / "digits" / "model.toml", root, 10) == b"text"


def test_repository_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (root / "digits" / "model.toml").write_bytes(b"text")
    (tmp_path / "current").symlink_to("repository")
    assert files.read(tmp_path / "current" / "digits" / "model.toml", tmp_path / "current", 10) == b"text"


@pytest.mark.parametrize("place", ["file", "folder"])
def test_link_out_of_the_repository_is_refused(root: Path, tmp_path: Path, place: str) -> None:
    secret = tmp_path / "repository-of-others" / "model.toml"  # whose path begins like the repository's
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    link = root / "digits" / "model.toml" if place == "file" else root / "letters"
    link.symlink_to(secret if place == "file" else secret.parent)
    with pytest.raises(BadModelFile, match=r"model.toml is a link out of the repository") as caught:
        files.read(root / ("digits" if place == "file" else "letters") / "model.toml", root, 10)
    assert str(tmp_path) not in caught.value.message


def fifo(file: Path) -> None:
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.mkdir()


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def process(file: Path) -> None:
    file.symlink_to("/proc/self/mem")


@pytest.mark.parametrize("make", [fifo, folder, device, process])
def test_what_is_no_regular_file_in_its_place_is_refused_at_once(root: Path, make: object) -> None:
    assert callable(make)
    make(root / "digits" / "model.toml")
    with pytest.raises(BadModelFile):
        files.read(root / "digits" / "model.toml", root, 10)


def test_file_that_is_too_long_is_refused(root: Path) -> None:
    file = root / "digits" / "model.toml"
    file.write_bytes(b"12345")
    with pytest.raises(BadModelFile, match=r"^model.toml has more than 4 bytes$"):
        files.read(file, root, 4)


def test_missing_file_is_an_error_of_the_system(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(root / "nothing", root, 4)
