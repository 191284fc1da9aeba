"""Files are read again when they change; what cannot be used leaves what was there."""

import logging
from pathlib import Path

import pytest

from convoy.service.errors import BadConfig
from convoy.service.followed import Followed, read_file


class Numbers:
    """Reads a number from a file, and counts how often."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reads = 0

    def __call__(self) -> int:
        self.reads += 1
        text = read_file("section.key", str(self.file)).decode()
        if not text.isdecimal():
            raise BadConfig(f"{text!r}, want a number")
        return int(text)


def changed(followed: Followed[int]) -> bool:
    """Whether a change is found: by the second look at a file that stays as it is."""
    return not followed.poll() and followed.poll()


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    file = tmp_path / "number"
    file.write_text("1")
    return Numbers(file)


@pytest.fixture
def followed(numbers: Numbers) -> Followed[int]:
    return Followed("numbers", [str(numbers.file)], numbers)


def test_file_that_stays_is_read_once(followed: Followed[int], numbers: Numbers) -> None:
    assert not any(followed.poll() for _ in range(4))
    assert (followed.value, numbers.reads) == (1, 1)


def test_file_that_changes_is_read_again(followed: Followed[int], numbers: Numbers) -> None:
    numbers.file.write_text("22")
    assert changed(followed)
    assert followed.value == 22
    assert not followed.poll()


def test_file_that_another_replaces_is_read_again(followed: Followed[int], numbers: Numbers) -> None:
    fresh = numbers.file.with_suffix(".new")
    fresh.write_text("3")
    fresh.replace(numbers.file)
    assert changed(followed)
    assert followed.value == 3


def test_link_that_leads_elsewhere_is_followed(tmp_path: Path) -> None:
    # As Kubernetes replaces the files of a secret.
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "number").write_text(number)
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "number").symlink_to("data/number")
    numbers = Numbers(tmp_path / "number")
    followed = Followed("numbers", [str(numbers.file)], numbers)
    (tmp_path / "fresh").symlink_to("2")
    (tmp_path / "fresh").replace(tmp_path / "data")
    assert changed(followed)
    assert followed.value == 2


@pytest.mark.parametrize("text", ["broken", None])
def test_what_cannot_be_used_leaves_what_was_there_and_is_told_once(
    followed: Followed[int], numbers: Numbers, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    caplog.set_level(logging.INFO)
    if text is None:
        numbers.file.unlink()
    else:
        numbers.file.write_text(text)
    assert not any(followed.poll() for _ in range(4))
    assert (followed.value, followed.failed) == (1, True)
    (record,) = caplog.records
    assert record.getMessage().startswith("numbers changed, but the previous ones stay in use: ")
    caplog.clear()
    numbers.file.write_text("4")
    assert changed(followed)
    assert (followed.value, followed.failed) == (4, False)
    assert [record.getMessage() for record in caplog.records] == ["numbers changed and are in use"]


def test_file_that_is_being_written_is_not_read(followed: Followed[int], numbers: Numbers) -> None:
    for size in range(1, 10):
        numbers.file.write_text("7" * size)
        assert not followed.poll()
    assert numbers.reads == 1
    assert followed.poll()
    assert followed.value == 777_777_777


def test_change_while_the_files_are_read_is_found(numbers: Numbers) -> None:
    def read() -> int:
        found = numbers()
        if numbers.reads == 1:
            numbers.file.write_text("55")
        return found

    followed = Followed("numbers", [str(numbers.file)], read)
    assert followed.value == 1
    assert changed(followed)
    assert followed.value == 55


def test_first_reading_must_succeed(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "nothing")
    with pytest.raises(BadConfig, match=r"^section\.key '.*nothing': No such file or directory$"):
        Followed("numbers", [str(numbers.file)], numbers)
