"""Regions of shared memory: what may be registered, and what becomes of a client that cuts its memory short."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.service.errors import BadRequest, BadTensor, UnknownRegion
from convoy.service.frontend import regions
from convoy.service.frontend.regions import Place, Region, Regions, open_region
from convoy.service.ipc import messages

PAGE = 4096


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A folder as /dev/shm, with the memory `mine` of one page."""
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "mine").write_bytes(bytes(PAGE))
    return folder


@pytest.fixture
def region(memory: Path) -> Region:
    return Region(*open_region("mine", "/mine", 1024, 2048, memory))


def refusal(folder: Path, key: str, offset: int = 0, nbytes: int = 4, name: str = "name") -> str:
    with pytest.raises(BadRequest) as caught:
        os.close(open_region(name, key, offset, nbytes, folder)[1])
    assert str(folder) not in caught.value.message
    return caught.value.message


def test_what_is_written_into_memory_is_read_back_by_its_client(memory: Path, region: Region) -> None:
    values = np.arange(8, dtype=np.float32)
    region.place(512, 32, "output 'y'").write(values)
    assert (memory / "mine").read_bytes()[1536:1568] == values.tobytes()
    out = bytearray(32)
    region.place(512, 32, "input 'x'").read(memoryview(out))
    assert out == values.tobytes()


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            "/",
            ".",
            "..",
            "../mine",
            "/../mine",
            "./mine",
            "//mine",
            "a/mine",
            "/a/../mine",
            "/etc/passwd",
            ".mine",
        ),
        *("mine\0", "mi\0ne", "mine\n", " mine", "mine ", "%2fmine", "..%2fmine", "mine\u2044x", "\u202emine", "ｍine"),
        *(".mine", "m" * 129, "convoy-metrics-x", "/convoy-x", "sem.mine", "~", "$HOME", "*", "mine;x"),
    ],
)
def test_key_that_is_not_one_plain_name_is_refused(memory: Path, key: str) -> None:
    assert "want one file name" in refusal(memory, key)


def make_link(path: Path) -> None:
    path.symlink_to("mine")


def make_link_outside(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_hard_link(path: Path) -> None:
    path.hardlink_to(path.parent / "mine")


@pytest.mark.parametrize("make", [make_link, make_link_outside, make_hard_link, os.mkfifo, os.mkdir])
def test_only_a_regular_file_with_one_name_is_registered(memory: Path, make: Any) -> None:
    make(memory / "odd")
    wanted = refusal(memory, "odd")
    assert wanted == "region 'name' cannot be opened: want the key of shared memory of the server's user"
    # Who asks does not learn what is there.
    assert refusal(memory, "nothing") == wanted


def test_memory_of_another_user_is_refused(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(open_region("name", "mine", 0, 4, memory)[1])
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "the server's user" in refusal(memory, "mine")


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (0, 0),
        (0, PAGE + 1),
        (PAGE, 1),
        (1, PAGE),
        (2**63, 1),
        (0, 2**63),
        (2**64 - 1, 1),
        (2**64 - 1, 2**64 - 1),
        (-1, 2),
    ],
)
def test_region_lies_within_its_memory(memory: Path, offset: int, nbytes: int) -> None:
    text = refusal(memory, "mine", offset, nbytes)
    assert text == f"region 'name' has {nbytes} bytes at {offset}, want 1 or more within the {PAGE} of its memory"


@pytest.mark.parametrize("name", ["", "x" * 129, "ü" * 65, "a\n", "\0", "\x1b[31m"])
def test_name_of_a_region_is_short_and_printable(memory: Path, name: str) -> None:
    assert "want 1 to 128" in refusal(memory, "mine", name=name)


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 2049), (2048, 1), (-1, 1), (2**63, 1), (1, 2**63 - 1), (2**64, 2**64), (0, -1)]
)
def test_part_of_a_region_lies_within_it(region: Region, offset: int, nbytes: int) -> None:
    with pytest.raises(BadTensor, match=r"input 'x' has .* of region 'mine', which has 2048"):
        region.place(offset, nbytes, "input 'x'")


def test_memory_that_was_cut_short_fails_the_request_and_grows_no_more(memory: Path, region: Region) -> None:
    os.truncate(memory / "mine", 1500)
    place = region.place(0, 2048, "input 'x'")
    for act in (lambda: place.read(memoryview(bytearray(2048))), lambda: place.write(bytes(2048))):
        with pytest.raises(BadTensor, match="region 'mine' has become shorter than it was registered"):
            act()
    assert (memory / "mine").stat().st_size == 1500


def test_memory_that_is_full_fails_the_request(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(BadTensor, match="region 'mine' cannot be used: No space left on device"):
        region.place(0, 4, "output 'y'").write(bytes(4))


def test_request_keeps_a_region_that_is_removed_meanwhile_and_then_closes_it(memory: Path) -> None:
    known = Regions()
    described, descriptor = open_region("mine", "mine", 0, PAGE, memory)
    known.add(described, descriptor)
    place: Place | None = known.get("mine").place(0, 4, "output 'y'")
    known.remove("mine")
    with pytest.raises(UnknownRegion, match="region 'mine' is not registered"):
        known.get("mine")
    assert place is not None
    place.write(b"kept")
    assert (memory / "mine").read_bytes()[:4] == b"kept"
    del place
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_all_regions_are_removed_without_a_name(memory: Path) -> None:
    opened = [open_region(name, "mine", 0, 4, memory) for name in ("one", "two")]
    known = Regions(*zip(*opened, strict=True))
    assert [each.name for each in known.described()] == ["one", "two"]
    known.remove("nobody")
    assert len(known.described()) == 2
    known.remove("")
    assert known.described() == []


def made_up() -> Iterator[str]:
    """10,000 keys: paths in all their disguises, and plain names of nothing."""
    heads = ("", "/", "../", "/../", "..\\", "%2e%2e/", "/dev/shm/", "/proc/self/fd/", "file:", "./", "\0", "a/../../")
    tails = ("etc/passwd", "0", "mine", "model.onnx", "memory", "..", "\u2024\u2024/x")
    number = 0
    while number < 10_000:
        for head in heads:
            for tail in tails:
                yield f"{head}{tail}{number if number % 3 else ''}"
                number += 1


def test_made_up_keys_open_nothing(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (memory / "mine").unlink()
    asked: list[tuple[str, int]] = []
    opened: list[int] = []
    real = os.open

    def watched(path: Any, flags: int, *rest: Any) -> int:
        asked.append((str(path), flags))
        descriptor = real(path, flags, *rest)
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(regions.os, "open", watched)
    for key in made_up():
        with pytest.raises(BadRequest):
            open_region("name", key, 0, 1, memory)
    assert opened == []
    assert asked, "plain names are looked up"
    assert {os.path.dirname(path) for path, _ in asked} == {str(memory)}  # noqa: PTH120  as it was given
    assert all(flags & os.O_PATH and flags & os.O_NOFOLLOW for _, flags in asked)


def test_description_travels_as_it_was_given(memory: Path) -> None:
    described, descriptor = open_region("mine", "/mine", 1, 2, memory)
    os.close(descriptor)
    assert described == messages.Region("mine", "/mine", 1, 2)
