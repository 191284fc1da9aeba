"""`convoy visualize` as a user types it, on networks of the zoo."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.models import checkpoint, registry
from convoy.models.checkpoint import Description
from convoy.models.commands.views import drawing
from convoy.service import cli
from tests.models.conftest import untrained
from tools import demo


@pytest.fixture
def lenet(tmp_path: Path) -> Path:
    return untrained(tmp_path)


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    return untrained(tmp_path, "unet", "tiny-scenes")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """In colour, and of sides that are no multiples of anything."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(pixels).resize((53, 41), Image.Resampling.BICUBIC).save(path)
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


FEW = ["--steps", "2"]
EVERY = {
    "filters": [],
    "features": ["--image", "PHOTOGRAPH"],
    "neurons": FEW,
    "class": FEW,
    "dream": ["--image", "PHOTOGRAPH", "--octaves", "2", *FEW],
    "evidence": ["--image", "PHOTOGRAPH", "--stride", "3", "--patch", "6"],
}


def typed(kind: str, network: Path, photograph: Path, *more: str) -> list[str]:
    words = [str(photograph) if word == "PHOTOGRAPH" else word for word in EVERY[kind]]
    return ["visualize", kind, str(network), *words, *more]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("name", ["lenet", "unet"])
def test_picture_goes_beside_the_checkpoint_and_its_name_is_printed(
    kind: str, name: str, photograph: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    network = request.getfixturevalue(name)
    assert cli.run(typed(kind, network, photograph)) == 0
    picture = network.with_name(f"{network.stem}-{kind}.png")
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {picture}"
    assert min(size(picture)) > 40


@pytest.mark.parametrize("kind", EVERY)
def test_same_command_gives_the_same_bytes(kind: str, unet: Path, photograph: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert cli.run(typed(kind, unet, photograph, "-o", str(first))) == 0
    assert cli.run(typed(kind, unet, photograph, "-o", str(again))) == 0
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("kind", ["neurons", "class", "dream"])
def test_seed_decides_on_the_picture_and_on_the_film(kind: str, lenet: Path, photograph: Path, tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate(("5", "5", "6")):
        picture, film = tmp_path / f"{run}.png", tmp_path / f"{run}.gif"
        more = ["--seed", seed, "-o", str(picture), "--gif", str(film), "--jitter", "3"]
        assert cli.run(typed(kind, lenet, photograph, *more)) == 0
        found.append((picture.read_bytes(), film.read_bytes()))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


@pytest.mark.parametrize(("kind", "frames"), [("neurons", 2), ("class", 2), ("dream", 4)])
def test_film_shows_the_steps(kind: str, frames: int, unet: Path, photograph: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    assert cli.run(typed(kind, unet, photograph, "--gif", str(film), "--rate", "0.1")) == 0
    with Image.open(film) as found:
        assert getattr(found, "n_frames", 1) == frames


def test_progress_goes_to_stderr(lenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["visualize", "class", str(lenet), *FEW]) == 0
    out, err = capsys.readouterr()
    assert "2/2" in err
    assert "2/2" not in out


def test_layers_lists_names_that_are_taken(lenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["visualize", "layers", str(lenet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["c1", "Conv2d", "6x28x28", "filters"]
    for name in (line.split()[0] for line in lines):
        assert cli.run(["visualize", "neurons", str(lenet), "--layer", name, "--channels", "0", "--steps", "1"]) == 0


def test_dream_is_as_large_as_the_photograph_and_class_images_as_told(
    unet: Path, photograph: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    assert cli.run(typed("dream", unet, photograph, "-o", str(picture))) == 0
    assert size(picture) == (53, 41)
    assert cli.run(typed("dream", unet, photograph, "--size", "30x30", "-o", str(picture))) == 0
    assert size(picture) == (30, 23)
    sizes = []
    for text in ("96x96", "150x230"):
        words = ["--size", text, "--class", "3", "--steps", "1", "-o", str(picture)]
        assert cli.run(["visualize", "class", str(unet), *words]) == 0
        sizes.append(size(picture))
    assert sizes[1][1] - sizes[0][1] == 150 - 96


def test_several_layers_of_one_image_stand_on_one_sheet(
    unet: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert cli.run(typed("features", unet, photograph, "--layer", "down.0", "-o", str(one))) == 0
    both = ["--layer", "down.0", "--layer", "bottom", "--channels", "0-2", "-o", str(two)]
    assert cli.run(typed("features", unet, photograph, *both)) == 0
    assert "shown: 3 of 16 maps of bottom; --channels selects others" in capsys.readouterr().out
    assert size(two) != size(one)


def test_filters_of_colour_networks_are_in_colour(unet: Path, lenet: Path, tmp_path: Path) -> None:
    colourful = []
    for network in (unet, lenet):
        picture = tmp_path / f"{network.stem}.png"
        assert cli.run(["visualize", "filters", str(network), "-o", str(picture)]) == 0
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        colourful.append(bool(np.ptp(pixels, axis=2).max() > 20))
    assert colourful == [True, False]


@pytest.mark.parametrize("words", [[], ["-o", "elsewhere.png"], ["-o", "new.png", "--gif", "film.gif"]])
def test_place_that_cannot_be_written_is_told_before_the_work(
    words: list[str], lenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Not by the folder's mode: who runs the tests may be root.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or path == Path())
    for name in ("lenet5-neurons.png", "elsewhere.png", "film.gif"):
        Path(name).touch()
    assert cli.run(["visualize", "neurons", lenet.name, *words]) == 2
    out, err = capsys.readouterr()
    assert "cannot be written, want a writable folder" in err
    assert ("--gif 'film.gif'" in err) == ("--gif" in words)
    assert "neurons of" not in err
    assert not out


@pytest.mark.parametrize("kind", ["features", "dream", "evidence"])
def test_picture_is_made_to_fit_and_one_that_is_too_large_is_told(
    kind: str,
    unet: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(drawing, "MAX_SIDE", 32)
    picture = tmp_path / "picture.png"
    assert cli.run(typed(kind, unet, photograph, "-o", str(picture))) == 0
    assert "image: resized from 41x53 to 25x32; --size sets" in capsys.readouterr().out
    small = size(picture)
    assert cli.run(typed(kind, unet, photograph, "--size", "400x400", "-o", str(picture))) == 0
    assert "made smaller" not in capsys.readouterr().out
    assert size(picture) != small


def test_evidence_names_the_class_and_the_places(
    unet: Path, photograph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(typed("evidence", unet, photograph, "--at", "20,30", "--class", "4", "--method", "activation")) == 0
    out = capsys.readouterr().out
    assert out.startswith("4  ")
    assert "at one pixel" in out
    assert "layer bottom" in out
    assert "occlusion" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["filters", "LENET", "--layer", "c9"], "there is no layer 'c9'; there are "),
        (["filters", "LENET", "--layer", "f6"], "layer 'f6' has no filters; layers with filters: c1, c3, c5"),
        (["filters", "LENET", "--inputs", "0"], "--inputs requires a layer after the first, 'c1' is drawn in"),
        (
            ["filters", "LENET", "--layer", "c3", "--inputs", "6"],
            "--inputs '6', want numbers such as 0-15,20 from 0 to 5",
        ),
        (["features", "LENET", "--image", "PHOTOGRAPH", "--size", "64"], "any size, lenet5 accepts 32x32"),
        (["features", "LENET", "--image", "PHOTOGRAPH", "--size", "x"], "--size 'x'"),
        (["filters", "LENET", "--channels", "6"], "want numbers such as 0-15,20 from 0 to 5"),
        (["neurons", "LENET", "--layer", "f"], "there is no layer 'f'; there are f6, "),
        (["neurons", "LENET", "--layer", "f"], "; did you mean 'f6'?"),
        (
            ["neurons", "LENET", "--size", "64x64", "--layer", "output"],
            "does not accept images of 64x64, only such as 32x32",
        ),
        (["neurons", "LENET", "--jitter", "32"], "--jitter 32, want less than the 32 pixels"),
        (["neurons", "LENET", "--gif", "a.png"], "--gif 'a.png', want a name that ends in .gif"),
        (["neurons", "LENET", "-o", "none/a.png"], "there is no folder 'none'"),
        (["neurons", "LENET", "-o", "folder.png"], "--output 'folder.png' is a folder, want a file"),
        (["neurons", "LENET", "--steps", "0"], "'--steps'"),
        (["neurons", "LENET", "--space", "fourier"], "'pixels', 'frequency'"),
        (["class", "LENET", "--class", "ten"], "--class 'ten' is not among the 10 labels, such as: 0, 1, 2"),
        (["class", "none.ckpt"], "there is no checkpoint none.ckpt"),
        (
            ["dream", "CONV1D", "--image", "PHOTOGRAPH"],
            "accepts float32 tensor 'waveform' [N, 3, time], want a network for images",
        ),
        (["dream", "LENET", "--image", "none.png"], "there is no image 'none.png'"),
        (["dream", "LENET", "--image", "PHOTOGRAPH", "--octaves", "9"], "want fewer --octaves"),
        (["dream", "LENET"], "Missing option '--image'"),
        (["evidence", "LENET", "--image", "PHOTOGRAPH", "--patch", "40"], "want 1 <= stride <= patch <= 32"),
        (["evidence", "LENET", "--image", "PHOTOGRAPH", "--at", "3"], "--at '3', want ROW,COLUMN"),
        (["evidence", "LENET", "--image", "PHOTOGRAPH", "--at", "3,3"], "--at requires a segmentation network"),
        (["evidence", "LENET", "--image", "PHOTOGRAPH", "--layer", "f6"], "'f6' outputs 84 numbers"),
        (["evidence", "LENET", "--image", "LENET"], "want a picture"),
        (["neuron", "LENET"], "Did you mean 'neurons'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_is_one_line_and_exit_code_2(
    words: list[str],
    said: str,
    lenet: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    if "CONV1D" in words:
        untrained(tmp_path, "conv1d", "gait")
    named = {"LENET": lenet.name, "PHOTOGRAPH": photograph.name, "CONV1D": "conv1d.ckpt"}
    assert cli.run(["visualize", *(named.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("convoy visualize: ")
    assert said in error


ZOO = {
    "convpool": {},
    "maxout": {"width": 4},
    "pattern": {},
    "locally_connected": {},
    "spatial_pyramid": {"width": 4},
    "resnet18": {},
    "mobilenet": {"alpha": 0.25},
    "fcn8s": {"width": 4},
    "segnet": {"width": 4},
    "deeplab_v3": {"width": 4},
}
SMALL = {"resnet18": (64, 64), "mobilenet": (64, 64)}


@pytest.mark.parametrize("architecture", ZOO)
def test_every_kind_works_on_the_architectures_of_the_zoo(architecture: str, tmp_path: Path, photograph: Path) -> None:
    row, side = registry.ARCHITECTURES[architecture], SMALL.get(architecture)
    torch.manual_seed(0)
    network = registry.build(architecture, row.input.channels, 4, ZOO[architecture], side)
    description = Description(
        architecture=architecture,
        arguments=registry.merged(architecture, ZOO[architecture]),
        task=row.task,
        input=registry.input_spec(architecture, network, "RGB" if row.input.channels == 3 else "L", side),
        data="",
        labels=["one", "two", "three", "four"],
        palette=None,
        mean=[0.5] * row.input.channels,
        std=[0.25] * row.input.channels,
    )
    path = tmp_path / "network.ckpt"
    checkpoint.save(path, description, network)
    for kind in EVERY:
        more = {"neurons": ["--channels", "0,1"], "evidence": ["--stride", "6"], "dream": ["--octaves", "1"]}
        assert cli.run(typed(kind, path, photograph, *more.get(kind, []))) == 0


@pytest.mark.trained
@pytest.mark.timeout(1200)  # the first such test trains
def test_trained_lenet5_is_99_percent_sure_of_every_class_image(
    trained_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = demo.run_folder(trained_repository.parent, "lenet5").chosen()
    assert cli.run(["visualize", "class", str(network), "-o", str(tmp_path / "class.png")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("%")]
    assert [label for label, _, _ in lines] == [str(digit) for digit in range(10)]
    assert all(float(confidence) >= 99 for _, confidence, _ in lines), lines
