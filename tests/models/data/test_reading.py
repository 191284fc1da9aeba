"""Pictures that have not changed are read once: not by the next run, nor by another process."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from convoy.models.data import picture, reading
from convoy.models.data.files import Fault
from convoy.models.data.formats.listing import Entry
from convoy.models.data.reading import SETTLED_NS, Facts, read


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "convoy" / "pictures"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are read, as they are."""
    names: list[str] = []
    original = picture.read

    def reading(path: Path, *rest: object) -> object:
        names.append(path.name)
        return original(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(picture, "read", reading)
    return names


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds after the files were written."""
    now = time.time_ns
    monkeypatch.setattr(reading.time, "time_ns", lambda: now() + 2 * SETTLED_NS)


def write(root: Path, count: int = 4) -> list[Entry]:
    root.mkdir()
    for number in range(count):
        Image.new("RGB", (10 + number, 8), (number, 200, 30)).save(root / f"{number}.png")
    return [Entry(root / f"{number}.png", 0) for number in range(count)]


def same(one: list[Facts | Fault], other: list[Facts | Fault]) -> bool:
    return repr(one) == repr(other)


@pytest.mark.usefixtures("later")
def test_second_reading_opens_nothing_and_knows_the_same(tmp_path: Path, opened: list[str]) -> None:
    entries = write(tmp_path / "data")
    first = read(tmp_path / "data", entries)
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png"]
    opened.clear()
    assert same(read(tmp_path / "data", entries), first)
    assert not opened


def change_content(path: Path) -> None:
    Image.new("RGB", (10, 8), (0, 0, 31)).save(path)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255  # of the same size
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [change_content, damage])
def test_what_has_changed_is_read_again(change: Callable[[Path], None], tmp_path: Path, opened: list[str]) -> None:
    entries = write(tmp_path / "data")
    os.utime(entries[0].image, ns=(1, 1))  # the change may come within one tick of the file system's clock
    read(tmp_path / "data", entries)
    opened.clear()
    change(entries[0].image)
    changed, *others = read(tmp_path / "data", entries)
    assert isinstance(changed, Fault) or opened == ["0.png"]
    assert all(isinstance(other, Facts) for other in others)
    assert not set(opened) - {"0.png"}


@pytest.mark.usefixtures("later")
def test_picture_that_cannot_be_read_is_tried_each_time(tmp_path: Path, opened: list[str]) -> None:
    entries = write(tmp_path / "data")
    entries[2].image.write_bytes(b"nothing")
    for _ in range(2):
        results = read(tmp_path / "data", entries)
        assert [isinstance(result, Fault) for result in results] == [False, False, True, False]
    assert opened.count("0.png") == 1


@pytest.mark.usefixtures("later")
def test_mask_that_has_changed_is_read_again_with_its_picture(tmp_path: Path, opened: list[str]) -> None:
    (image, _), *_ = write(tmp_path / "data", 1)
    mask = tmp_path / "mask.png"
    for highest in (1, 2):
        Image.new("L", (10, 8), highest).save(mask)
        os.utime(mask, ns=(highest, highest))  # both may be written within one tick of the file system's clock
        (facts,) = read(tmp_path / "data", [Entry(image, mask)])
        assert isinstance(facts, Facts)
        assert facts.highest == highest
    assert opened == ["0.png", "0.png"]


def test_file_that_was_written_just_now_is_not_noted(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = write(tmp_path / "data")
    # It is just now for all of them, both times, however long this process is paused.
    changed = min(entry.image.stat().st_ctime_ns for entry in entries)
    monkeypatch.setattr(reading.time, "time_ns", lambda: changed + SETTLED_NS // 2)
    for _ in range(2):
        read(tmp_path / "data", entries)
    assert len(opened) == 8


@pytest.mark.usefixtures("later")
def test_notes_are_of_this_version_and_of_pictures_that_are_there(
    tmp_path: Path, cache: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = write(tmp_path / "data")
    read(tmp_path / "data", entries)
    entries[3].image.unlink()
    monkeypatch.setattr(reading, "VERSION", "another")
    read(tmp_path / "data", entries[:3])
    assert len(opened) == 7
    assert len(reading.load_notes(tmp_path / "data", None).pictures) == 3
    (file,) = cache.iterdir()
    file.write_bytes(b"nothing")
    assert not reading.load_notes(tmp_path / "data", None).pictures


@pytest.mark.usefixtures("later")
def test_reading_goes_on_where_nothing_can_be_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    entries = write(tmp_path / "data")
    assert len(read(tmp_path / "data", entries)) == 4
