"""Pictures that are made to be slow or large: what they may cost is bounded, whatever they contain."""

import json
import struct
import subprocess
import sys
from typing import Any

import pytest

from convoy.service.frontend.threads import HEAVY
from convoy.service.images.decode import estimate
from tests.service.images import bombs

LARGEST = 512  # MiB; about ten bytes for each pixel


def cost(name: str) -> dict[str, Any]:
    """What decoding takes in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.service.images.bombs", name], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("JPEG of 65,535 by 65,535", "image is 65535x65535 = 4294836225 pixels, want at most 50000000"),
        ("PNG of 65,535 by 65,535", "image is 65535x65535 = 4294836225 pixels, want at most 50000000"),
        ("10,000 scans", "image has more than 100 scans, want at most 100"),
        ("100 scans of the largest picture", "image has 21 or more scans of 7071x7071 pixels, want at most 20"),
        ("larger PNG of 16 bits", "image is 7071x7071 = 49999041 pixels of 16 bits, want at most 25000000"),
    ],
)
def test_bomb_is_refused_before_anything_is_decoded(name: str, message: str) -> None:
    found = cost(name)
    assert found["outcomes"][0].startswith(message)
    assert found["seconds"] < 0.5
    assert found["mib"] < 8


@pytest.mark.parametrize(
    ("name", "seconds", "mib"),
    [
        ("1 by 65,535", 0.5, 32),
        ("65,535 by 1", 0.5, 32),
        ("PNG that inflates to 1 GiB", 0.5, 16),
        ("interlaced PNG that inflates to 1 GiB", 0.5, 16),
        ("JPEG cut at every byte", 2, 16),
        ("PNG cut at every byte", 2, 16),
        ("100 scans of a small picture", 5, 128),
        ("20 scans of the largest picture", 15, LARGEST),
        ("largest interlaced PNG", 15, LARGEST),
        ("largest PNG of 16 bits", 15, LARGEST),
    ],
)
def test_odd_picture_takes_no_more_than_its_header_says(name: str, seconds: float, mib: float) -> None:
    found = cost(name)
    assert found["seconds"] < seconds
    assert found["mib"] < mib


def test_cut_files_are_refused_in_words_or_shown() -> None:
    for name in ("JPEG cut at every byte", "PNG cut at every byte"):
        outcomes = cost(name)["outcomes"]
        assert all(outcome.startswith("image ") or outcome == "64x64" for outcome in outcomes)
        assert sum(outcome == "64x64" for outcome in outcomes) <= 16  # without the last chunk of a PNG


def sized(data: bytes, height: int, width: int) -> bytes:
    """A file of 16 by 16 pixels, with other sides in its header."""
    for code, sides in ((">II", (width, height)), (">HH", (height, width))):
        data = data.replace(struct.pack(code, 16, 16), struct.pack(code, *sides), 1)
    return data


@pytest.mark.parametrize(
    "data",
    [
        sized(bombs.png(16, 16), 7071, 7071),
        sized(bombs.png(16, 16, 16), 2000, 2000),
        sized(bombs.progressive(16, 16, 1, 10), 2000, 2000),
        sized(bombs.progressive(16, 16, 3, 2).replace(b"\xff\xc2", b"\xff\xc0"), 4000, 4000),
    ],
    ids=["PNG", "PNG of 16 bits", "progressive JPEG", "plain JPEG"],
)
def test_large_pictures_are_estimated_as_heavy(data: bytes) -> None:
    assert estimate(data) >= HEAVY


@pytest.mark.parametrize(
    "data",
    [
        sized(bombs.png(16, 16), 1000, 1000),
        sized(bombs.progressive(16, 16, 3, 10), 1000, 1000),
        sized(bombs.progressive(16, 16, 3, 2).replace(b"\xff\xc2", b"\xff\xc0"), 3000, 3000),
    ],
    ids=["PNG", "progressive JPEG", "plain JPEG"],
)
def test_usual_pictures_are_estimated_as_light(data: bytes) -> None:
    assert 0 < estimate(data) < HEAVY


def test_whatever_is_no_picture_is_estimated_at_nothing() -> None:
    for data in (b"", b"\xff\xd8\xff", b"GIF89a" + bytes(100), bombs.png(8, 8)[:20], b"\xff\xd8\xff" + bytes(100)):
        assert estimate(data) == 0


def test_file_that_hides_its_frame_is_estimated_as_heavy() -> None:
    data = bombs.progressive(16, 16, 3, 2)
    assert estimate(data[:2] + bombs.segment(0xFE, b"") * 100 + data[2:]) >= HEAVY


def test_plain_file_with_more_scans_than_components_is_refused_if_it_is_large() -> None:
    found = bombs.progressive(4000, 4000, 1, 6).replace(b"\xff\xc2", b"\xff\xc0")
    with pytest.raises(bombs.BadImage, match="image has 5 or more scans of 4000x4000 pixels, want at most 4"):
        bombs.decode(found, "RGB", bombs.LIMIT)
