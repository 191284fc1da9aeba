"""A folder of pictures, from a first look at it to a quantised file that serves, by the commands that a user types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from convoy.models.data.registry import data_set
from tests.service.running import Server

PICTURES = 700


def convoy(*arguments: str | Path, code: int = 0) -> str:
    """The command's standard output."""
    program = Path(sys.executable).with_name("convoy")
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Digits as PNG files, a subfolder for each class, and a file that is no picture."""
    digits = data_set("digits").split("train")
    root = tmp_path / "digits"
    for index in range(PICTURES):
        pixels, label = digits[index]
        path = root / f"digit {label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(path)
    (root / "digit 3" / "broken.png").write_bytes(b"no picture")
    return root


def test_folder_of_pictures_becomes_a_quantised_file_that_serves(folder: Path, tmp_path: Path) -> None:
    run, repository = tmp_path / "run", tmp_path / "repository"

    told = convoy("data", "check", folder, "--sheet", tmp_path / "sheet.png", code=1)
    assert f"10 classes, {PICTURES} pictures" in told
    assert "broken.png cannot be read" in told
    assert Image.open(tmp_path / "sheet.png").width > 100

    convoy("train", "lenet5", "--data", folder, "--epochs", "12", "--rotate", "10", "--output", run)
    assert "<img" in (run / "report.html").read_text()
    assert (run / "config.toml").is_file()

    for variant, name in (("fp32", "digits"), ("int8", "digits-int8")):
        convoy("export", run / "last.ckpt", "--repository", repository, "--variant", variant, "--name", name,
               "--max-drop", "0.03")  # fmt: skip
    files = run / "last.ckpt", repository / "digits" / "1" / "model.onnx"
    trained, served = (json.loads(convoy("evaluate", file, "--json", "--data", folder)) for file in files)
    assert trained["scores"] == pytest.approx(served["scores"])

    pictures = sorted(folder.glob("digit ?/*[05].png"))
    with Server(repository) as server:
        assert "int8" in convoy("models", "--server", server.grpc)
        told = convoy("classify", *pictures, "--model", "digits-int8", "--json", "--server", server.grpc)
    answers = [json.loads(line)["labels"][0]["name"] for line in told.splitlines()]
    right = sum(picture.parent.name == answer for picture, answer in zip(pictures, answers, strict=True))
    assert right > 0.9 * len(pictures)
