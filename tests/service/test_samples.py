"""Sample pictures beside a model: which are shown, and that nothing else can be read in their place."""

import os
from pathlib import Path

import pytest

from convoy.service import samples
from convoy.service.repository import scan

PNG = b"\x89PNG\r\n\x1a\n picture"
JPEG = b"\xff\xd8\xff picture"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "digits" / "1" / "samples"
    folder.mkdir(parents=True)
    (folder.parent / "model.onnx").write_bytes(b"network")
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


def read(folder: Path, number: int) -> tuple[str, bytes] | None:
    return samples.read(folder.parents[2], folder.parent, number)


def test_png_and_jpeg_are_counted_and_read(folder: Path) -> None:
    (folder / "1.png").write_bytes(PNG)
    (folder / "2.jpg").write_bytes(JPEG)
    assert samples.count(folder.parent) == 2
    assert read(folder, 1) == ("image/png", PNG)
    assert read(folder, 2) == ("image/jpeg", JPEG)
    assert read(folder, 3) is None


def test_model_without_samples_has_none(tmp_path: Path) -> None:
    assert samples.count(tmp_path) == 0
    assert samples.read(tmp_path, tmp_path, 1) is None


def test_count_ends_at_a_gap_and_at_the_limit(folder: Path) -> None:
    for number in (1, 2, 4):
        (folder / f"{number}.png").write_bytes(PNG)
    assert samples.count(folder.parent) == 2
    for number in range(1, 20):
        (folder / f"{number}.png").write_bytes(PNG)
    assert samples.count(folder.parent) == samples.MOST


def test_file_that_is_too_large_is_not_shown(folder: Path) -> None:
    (folder / "1.png").write_bytes(PNG + bytes(samples.MOST_BYTES - len(PNG)))
    (folder / "2.png").write_bytes(PNG + bytes(samples.MOST_BYTES - len(PNG) + 1))
    assert read(folder, 1) is not None
    assert read(folder, 2) is None


def test_file_that_is_no_picture_is_not_shown(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"<html><script>")
    (folder / "2.jpg").write_bytes(PNG)
    assert read(folder, 1) is None
    assert read(folder, 2) is None


@pytest.mark.parametrize("target", ["secret.png", "root/other.png", "root/digits/1.png"])
def test_link_out_of_the_versions_folder_is_not_followed(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / target).write_bytes(PNG)
    (folder / "1.png").symlink_to(tmp_path / target)
    assert read(folder, 1) is None


def test_folder_that_is_a_link_elsewhere_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(PNG)
    folder.rmdir()
    folder.symlink_to(tmp_path / "pictures")
    assert read(folder, 1) is None


def test_version_that_is_a_link_out_of_the_repository_has_no_samples(folder: Path, tmp_path: Path) -> None:
    (folder / "1.png").write_bytes(PNG)
    moved = folder.parent.rename(tmp_path / "moved")
    folder.parent.symlink_to(moved)
    assert read(folder, 1) is None


def test_link_inside_the_versions_folder_is_followed(folder: Path) -> None:
    (folder.parent / "picture.png").write_bytes(PNG)
    (folder / "1.png").symlink_to("../picture.png")
    assert read(folder, 1) == ("image/png", PNG)


@pytest.mark.timeout(10)
def test_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "1.png")
    assert read(folder, 1) is None


def test_samples_are_no_part_of_the_model(folder: Path) -> None:
    before = scan(folder.parents[2])
    (folder / "1.png").write_bytes(PNG)
    after = scan(folder.parents[2])
    assert after == before
    assert after["digits"].files[1].beside == ()
