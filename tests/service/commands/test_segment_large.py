"""`convoy segment` of pictures of any size: in tiles, to a TIFF file, resumed after a kill."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from convoy.service.client.client import Client
from convoy.service.client.large import Progress
from convoy.service.commands.large import duration, line
from convoy.service.errors import BadConfig
from convoy.service.rasters.journal import Journal
from tests.service import networks
from tests.service.running import Server

Convoy = Callable[..., subprocess.CompletedProcess[str]]
Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 900, 500
# The command, killed with its fifth strip.
KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from convoy.service import cli
    from convoy.service.rasters.journal import Journal

    write = Journal.write

    def last_words(self, rows):
        write(self, rows)
        if len(self._strips) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = last_words
    cli.run(sys.argv[1:])
    """
)


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("land")
    networks.save(networks.surroundings(), repository, "land")
    networks.save(networks.surroundings("global"), repository, "scene")
    with Server(repository, ["server.lame_duck_seconds=0", "limits.max_input_pixels=500000"]) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def huge(folder: Path) -> Pixels:
    """The pixels of huge.png."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    PIL.Image.fromarray(pixels).save(folder / "huge.png")
    return pixels


def mask_of(path: Path) -> Pixels:
    return np.asarray(PIL.Image.open(path))


def whole(server: Server, pixels: Pixels) -> Pixels:
    with Client(server.grpc) as client:
        return client.segment(pixels, "land").mask


def test_mask_of_a_large_picture_is_a_palette_tiff(convoy: Convoy, land: Server, folder: Path, huge: Pixels) -> None:
    options = ["--tile", "128", "--areas", "areas.json", "--overview", "small.png"]
    done = convoy("segment", "huge.png", "-o", "mask.tif", "--model", "land", "--server", land.grpc, *options)
    assert (done.returncode, done.stderr) == (0, "")
    expected = whole(land, huge)
    assert (mask_of(folder / "mask.tif") == expected).all()
    first, second, header, *_, last = done.stdout.splitlines()
    assert first == f"huge.png  land version 1 · {WIDTH}×{HEIGHT}"
    assert second == "the mask of the whole picture, 40 tiles of 128×128, halo 6"
    assert header.split() == ["class", "pixels", "share"]
    assert last == "wrote mask.tif, areas.json, small.png"
    areas = {each["name"]: each["pixels"] for each in json.loads((folder / "areas.json").read_text())}
    assert areas["water"] == int((expected == 2).sum())
    assert sorted(path.name for path in folder.iterdir()) == ["areas.json", "huge.png", "mask.tif", "small.png"]


def test_network_that_pools_globally_is_told_apart(convoy: Convoy, land: Server, folder: Path, huge: Pixels) -> None:
    options = ["--model", "scene", "--tile", "256", "--halo", "32", "--server", land.grpc]
    done = convoy("segment", "huge.png", "-o", "mask.tif", *options)
    assert done.returncode == 0
    assert done.stderr == (
        "huge.png: not exact: the mask of 'scene' depends on the whole picture, as by global pooling\n"
    )
    assert done.stdout.splitlines()[1] == "not the mask of the whole picture, 15 tiles of 256×256, halo 32"
    assert mask_of(folder / "mask.tif").shape == (HEIGHT, WIDTH)


def test_mask_in_tiles_may_be_png(convoy: Convoy, land: Server, folder: Path, huge: Pixels) -> None:
    done = convoy("segment", "huge.png", "-o", "mask.png", "--model", "land", "--tile", "200", "--server", land.grpc)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "wrote mask.png, mask-overlay.png"
    assert (mask_of(folder / "mask.png") == whole(land, huge)).all()
    assert PIL.Image.open(folder / "mask-overlay.png").size == (WIDTH, HEIGHT)


def test_picture_beyond_the_servers_limits_goes_in_tiles(convoy: Convoy, land: Server, folder: Path) -> None:
    PIL.Image.fromarray(np.zeros((900, 700, 3), np.uint8)).save(folder / "large.png")
    command = ["segment", "large.png", "-o", "mask.png", "--model", "land", "--server", land.grpc]
    done = convoy(*command, "--tile", "512")
    assert done.returncode == 0
    done = convoy(*command)
    assert done.stderr.splitlines()[0] == (
        "image is 700x900 = 630000 pixels, want at most 500000, the server's limits.max_input_pixels: sent in tiles"
    )
    # One tile of the size that is chosen is as large as the picture.
    assert done.returncode == 2
    assert "tiles of 1024x1024 are too large" in done.stderr.splitlines()[-1]
    assert "want smaller ones (--tile)" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "mask.png", "--areas", "a.csv"], "--areas wants a mask as TIFF: -o 'mask.tif'"),
        (["-o", "mask.png", "--resume"], "--resume wants a mask as TIFF: -o 'mask.tif'"),
        (["-o", "mask.bmp"], "--output 'mask.bmp', want a name that ends in .png, or in .tif for any size"),
        (["-o", "mask.tif", "--confidence", "sure.png"], "--confidence is of a picture that is sent whole"),
        (
            ["-o", "mask.tif", "--tile", "8"],
            "tile is 8, want at least 14 along the height: the halo has 6 and 6 pixels",
        ),
        (["-o", "none/mask.tif"], "cannot write 'none/mask.tif': there is no folder 'none'"),
        (["-o", "mask.tif", "--model", "lond"], "no model 'lond' for segmentation that is ready; did you mean 'land'"),
        (["-o", "mask.tif", "--areas", "mask.tif"], "--output and --areas are both 'mask.tif', want different files"),
    ],
)
def test_what_does_not_go_together_is_refused(
    convoy: Convoy, land: Server, folder: Path, huge: Pixels, options: list[str], message: str
) -> None:
    model = [] if "--model" in options else ["--model", "land"]
    done = convoy("segment", "huge.png", *model, *options, "--server", land.grpc)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == ["huge.png"]


def test_killed_run_goes_on_where_it_was(convoy: Convoy, land: Server, folder: Path, huge: Pixels) -> None:
    tall = np.concatenate([huge] * 2)
    PIL.Image.fromarray(tall).save(folder / "tall.png")
    command = ["segment", "tall.png", "-o", "mask.tif", "--model", "land", "--tile", "64", "--server", land.grpc]
    partial = folder / "mask.tif.partial"
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    done, total = len(list(partial.glob("*.z"))), -(-(len(tall) - 12) // 52)
    assert done == 5

    refused = convoy(*command)
    assert refused.returncode == 2
    assert "has part of a mask: want --resume to go on, or remove it" in refused.stderr
    other = convoy(*command, "--resume", "--halo", "8")
    assert other.returncode == 2
    assert (
        "was begun with halo [[6, 6], [6, 6]], now it is [[8, 8], [8, 8]]: want the same, or remove it" in other.stderr
    )

    # What the killed run had sent is no longer counted later.
    assert land.wait_for_total("convoy_requests_in_flight", 0) == 0
    before = land.total("convoy_images_total", model="land")
    resumed = convoy(*command, "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    sent = land.wait_for_total("convoy_images_total", before + (total - done) * 10, model="land") - before
    assert sent == (total - done) * 10  # ten tiles a strip
    assert not partial.exists()
    with Client(land.grpc) as client:
        expected = client.segment_large(tall, "land", tile=300).mask
    assert (mask_of(folder / "mask.tif") == expected).all()


def test_damaged_strip_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "part", {"model": "land"}, 10, resume=False)
    rows = np.arange(50, dtype=np.uint8).reshape(5, 10)
    journal.write(rows)
    journal.write(rows[:2])
    again = Journal(tmp_path / "part", {"model": "land"}, 10, resume=True)
    assert again.rows == 7
    parts: list[Pixels] = []

    class Sink:
        def write(self, part: Pixels) -> None:
            parts.append(part)

        def close(self) -> None: ...

        abandon = close

    again.pour(Sink())
    assert (np.concatenate(parts) == np.concatenate([rows, rows[:2]])).all()
    first = min((tmp_path / "part").glob("*.z"))
    first.write_bytes(first.read_bytes()[:-3])
    with pytest.raises(BadConfig, match=r"rows-0000000000-0000000005\.z' is damaged: remove"):
        Journal(tmp_path / "part", {"model": "land"}, 10, resume=True).pour(Sink())
    (tmp_path / "part" / "about.json").unlink()
    with pytest.raises(BadConfig, match="is no part of a mask"):
        Journal(tmp_path / "part", {"model": "land"}, 10, resume=True)


def test_progress_says_how_fast_and_how_long_still() -> None:
    assert line(Progress(1204, 2408, 1204, 0), 602.0) == "1,204 of 2,408 tiles, 50%, 2.0 tiles/s, 10 min 2 s left"
    # Of a resumed run, only what was sent now says how fast it is.
    assert line(Progress(1204, 2408, 100, 0), 10.0) == "1,204 of 2,408 tiles, 50%, 10.0 tiles/s, 2 min 0 s left"
    assert line(Progress(3, 9, 3, 0), 1.0) == "3 of 9 tiles, 33%"
    assert [duration(seconds) for seconds in (0.4, 59, 61, 3599.9, 8000)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 13 min",
    ]
