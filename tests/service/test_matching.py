"""A template as a model, served: found over ModelInfer, shown by `convoy locate`, refused where it is not for that."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from convoy.models import template
from convoy.models.data.builtin import scenes
from convoy.service import cli
from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.client.tensors import TensorClient
from convoy.service.commands.picture import heat_overlay
from convoy.service.errors import BadTensor
from tests.service import networks
from tests.service.running import Server

ROW, COLUMN, HEIGHT, WIDTH = 31, 52, 18, 26
Locate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return scenes.draw("test", 5, (72, 96)).image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, scene: np.ndarray) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("matching")
    crop = scene[ROW : ROW + HEIGHT, COLUMN : COLUMN + WIDTH]
    Image.fromarray(crop).save(folder / "waldo.png")
    Image.fromarray(crop).convert("L").save(folder / "grey.png")
    for name in ("waldo", "grey"):
        template.publish_template(folder / f"{name}.png", folder / "repository", name)
    networks.save(networks.classifier(), folder / "repository", "letters")
    networks.save(networks.doubler(), folder / "repository", "doubler")
    with Server(folder / "repository", ["server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture
def locate(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Locate:
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = cli.run(["locate", *map(str, arguments), "--server", server.grpc])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run


@pytest.fixture
def picture(tmp_path: Path, scene: np.ndarray) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(scene).save(path)
    return path


def test_server_answers_heat_map_location_and_score(server: Server, scene: np.ndarray) -> None:
    images = np.stack([scene, (scene // 2 + 40).astype(np.uint8)])
    with TensorClient(server.grpc, deadline=30) as client:
        document = client.document("waldo")
        answer = client.infer("waldo", "image", images, ["heat_map", "location", "score"])
    assert document is not None
    assert (document.task, document.labels) == ("matching", ["waldo"])
    assert answer["heat_map"].shape == (2, 72 - HEIGHT + 1, 96 - WIDTH + 1)
    assert answer["location"].tolist() == [[ROW, COLUMN]] * 2
    assert (answer["score"] >= 0.99).all()
    assert (answer["heat_map"].reshape(2, -1).max(1) == answer["score"]).all()


def test_command_prints_the_place_and_the_score(locate: Locate, picture: Path, tmp_path: Path) -> None:
    dimmed = tmp_path / "dimmed.png"
    Image.fromarray((np.asarray(Image.open(picture)) * 0.6).astype(np.uint8)).save(dimmed)
    for model in ("waldo", "grey"):
        done = locate(model, picture, dimmed)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert len(lines) == 2
        for line in lines:
            assert f"x {COLUMN}  y {ROW}  width {WIDTH}  height {HEIGHT}  score " in line
            assert float(line.split()[-1]) > 0.99


def test_place_with_a_low_score_is_told_as_doubtful(locate: Locate, picture: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (72, 96, 3), np.uint8)).save(noise)
    found, doubtful = locate("waldo", picture, noise).stdout.splitlines()
    assert doubtful.endswith("  (probably not there)")
    assert "probably" not in found


def test_heat_map_is_drawn_with_a_box_around_the_place(locate: Locate, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "heat.png"
    assert locate("waldo", picture, "-o", out).returncode == 0
    with Image.open(out) as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape == (72, 96, 3)
    green = (pixels == (0, 255, 120)).all(axis=2)
    rows, columns = np.nonzero(green)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        ROW,
        ROW + HEIGHT - 1,
        COLUMN,
        COLUMN + WIDTH - 1,
    )
    assert green.sum() == 2 * (HEIGHT + WIDTH) - 4
    white = (pixels.min(axis=2) >= 0.6 * 255) & ~green
    assert white[ROW + HEIGHT // 2, COLUMN + WIDTH // 2]
    assert white.sum() < 50


def test_values_of_the_heat_map_lie_in_the_middle_of_their_windows() -> None:
    heat_map = np.full((3, 4), -1, np.float32)
    heat_map[2, 3] = 1
    image = np.asarray(heat_overlay(np.zeros((7, 8, 1), np.uint8), heat_map, (0, 0), (5, 5))).sum(axis=2)
    lit = image[1:-1, 5:]  # beside the box
    assert np.argwhere(lit > 0).tolist() == [[3, 0]]  # row 2 + 5 // 2, column 3 + 5 // 2, in the part looked at


def test_picture_smaller_than_the_template_is_the_callers_mistake(
    server: Server, locate: Locate, tmp_path: Path
) -> None:
    small = np.zeros((1, HEIGHT - 1, WIDTH, 3), np.uint8)
    with TensorClient(server.grpc, deadline=30) as client, pytest.raises(ServerError) as refused:
        client.infer("waldo", "image", small, ["score"])
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, BadTensor.reason)
    assert f"want at least [{HEIGHT}, {WIDTH}]" in refused.value.message
    Image.fromarray(small[0]).save(tmp_path / "small.png")
    done = locate("waldo", tmp_path / "small.png")
    assert (done.returncode, done.stderr) == (1, "")
    assert "want at least" in done.stdout


def test_list_of_models_says_what_it_is_for(server: Server) -> None:
    with Client(server.grpc) as client:
        tasks = {model.model: model.task for model in client.models()}
        assert (tasks["waldo"], tasks["letters"]) == ("matching", "classification")
        with pytest.raises(ServerError, match="model 'waldo' is for matching, want segmentation"):
            client.segment(np.zeros((40, 40, 3), np.uint8), model="waldo")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["letters", "scene.png"], "is for classification, want one created by `convoy template`"),
        (["doubler", "scene.png"], "has no metadata"),
        (["nobody", "scene.png"], "model 'nobody' is unknown"),
        (["waldo", "scene.png", "scene.png", "-o", "heat.png"], "one file for 2 pictures"),
        (["waldo", "scene.png", "-o", "scene.png"], "is the picture itself"),
        (["waldo", "scene.png", "-o", "heat.jpg"], "--output 'heat.jpg', want a name that ends in .png"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, locate: Locate, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(picture.parent)
    done = locate(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_file_that_is_no_picture_is_told_and_the_others_are_answered(
    locate: Locate, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    done = locate("waldo", tmp_path / "text.png", tmp_path / "absent.png", picture)
    assert (done.returncode, done.stderr) == (1, "")
    text, absent, found = done.stdout.splitlines()
    assert "cannot be read, want an image file" in text
    assert "No such file or directory" in absent
    assert f"x {COLUMN}" in found
