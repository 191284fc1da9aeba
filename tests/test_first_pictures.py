"""A folder of photographs becomes a served model: each command prints the next one, to the letter."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convoy.service import cli
from tests.service.running import Server

COLOURS = {"barn": "firebrick", "lake": "steelblue", "wood": "forestgreen"}


def draw(path: Path, colour: str, number: int) -> None:
    """A square of the class's colour on noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(90, 160, (60, 80, 3), np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).rectangle((number % 20, number % 15, 45 + number % 20, 40 + number % 15), fill=colour)
    image.save(path)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes, and one of each thing that goes wrong in such folders."""
    monkeypatch.chdir(tmp_path)
    root = Path("holiday photos")
    for label, colour in COLOURS.items():
        for number in range(16):
            draw(root / label / f"IMG {number}.jpg", colour, 16 * len(label) + number)
    draw(root / "barn" / "2025" / "nested.png", COLOURS["barn"], 99)
    draw(root / "stray.jpg", "black", 0)
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("from the lake\n")
    (root / "lake" / "Thumbs.db").write_bytes(b"thumbs")
    (root / "lake" / "broken.jpg").write_bytes(b"no picture")
    (root / "wood" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return root


def printed_next(out: str) -> list[list[str]]:
    """The commands that a command prints as the next ones."""
    _, _, after = out.partition("\nnext ")
    return [shlex.split(line) for line in re.findall(r"^\s*convoy (.*)$", after, re.MULTILINE)]


def test_folder_of_photographs_is_served_by_the_commands_that_are_printed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["data", "check", str(photos)]) == 1  # something is left out
    out, err = capsys.readouterr()
    assert err == f"not used: 1 picture in {photos.resolve()}, outside the folders of the classes: stray.jpg\n"
    (train,) = printed_next(out)
    assert train[:4] == ["train", "pattern", "--data", "holiday photos"]
    assert re.search(r"\n +about \d+ (seconds|minutes) on this machine\n$", out)

    assert cli.run([*train, "--epochs", "2"]) == 0
    out, err = capsys.readouterr()
    assert sorted(line for line in err.splitlines() if line.startswith("left out")) == [
        "left out 3 of 52 pictures; --strict makes this an error",
        f"left out: {photos.resolve()}/empty contains no picture, so it is not a class",
        f"left out: {photos.resolve()}/lake/broken.jpg cannot be read (damaged, or no picture), want a picture",
        f"left out: {photos.resolve()}/wood/phone.heic cannot be read (of a kind that Pillow does not open; with HEIC "
        "files, pip install pillow-heif), want a picture",
    ]
    export = next(words for words in printed_next(out) if words[0] == "export")
    assert export[1].startswith("runs/pattern-holiday photos/")

    assert cli.run(export) == 0
    serve, classify = printed_next(capsys.readouterr().out)
    assert serve == ["serve", "--repository", "repository"]
    assert classify[0] == "classify"
    assert Path(classify[1]).is_relative_to(photos)
    with Server(Path(serve[2]), ["server.lame_duck_seconds=0"]) as server:
        assert cli.run([*classify, "--server", server.grpc]) == 0
    assert any(label in capsys.readouterr().out for label in COLOURS)


def test_masks_are_segmented_by_the_commands_that_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks of 0 and 255, the commonest that are painted by hand."""
    monkeypatch.chdir(tmp_path)
    root = Path("tiles")
    for number in range(20):
        draw(root / "images" / f"{number}.jpg", "firebrick", number)
        mask = Image.new("L", (80, 60))
        left, top = number % 20, number % 15
        ImageDraw.Draw(mask).rectangle((left, top, left + 45, top + 40), fill=255)
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / "masks" / f"{number}.png")
    cli.run(["data", "check", str(root)])
    out, err = capsys.readouterr()
    assert "have the values 0 and 255, read as the classes 0 and 1" in err
    (train,) = printed_next(out)
    assert cli.run([*train, "--epochs", "1"]) == 0
    export = next(words for words in printed_next(capsys.readouterr().out) if words[0] == "export")
    assert cli.run(export) == 0
    serve, segment = printed_next(capsys.readouterr().out)
    with Server(Path(serve[2]), ["server.lame_duck_seconds=0"]) as server:
        assert cli.run([*segment, "--server", server.grpc]) == 0
    assert set(np.unique(np.asarray(Image.open("mask.png")))) <= {0, 1}
