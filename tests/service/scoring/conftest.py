"""Pictures of many kinds in a folder, and networks that score them."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from convoy.service.scoring.score import Score
from tests.service import networks


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(count: int, seed: int = 1) -> list[bytes]:
    """JPEG and PNG files of several sizes, in colour and grey, and every 16th a file that cannot be decoded."""
    rng = np.random.default_rng(seed)
    files = []
    for number in range(count):
        shape = (16 + 8 * (number % 3), 16 + 4 * (number % 5), 3)[: 2 + (number % 4 > 0)]
        data = (png if number % 2 else jpeg)(rng.integers(0, 256, shape, dtype=np.uint8))
        broken = (data[: len(data) // 2], b"", b"no picture")[number // 16 % 3]
        files.append(broken if number % 16 == 15 else data)
    return files


def fill(folder: Path, count: int, seed: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(pictures(count, seed)):
        (folder / f"{number:05d}.{'png' if number % 2 else 'jpg'}").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def scoring_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: `classes`, a classifier, `masks`, a segmenter of images of any size."""
    root = tmp_path_factory.mktemp("scoring")
    networks.save(networks.residual(), root, "classes")
    networks.save(networks.dense(), root, "masks")
    for file in root.rglob("*.onnx"):
        Score(str(file), profiles=str(file.parent)).open()  # measures it once for all tests
    return root


@pytest.fixture(scope="session")
def classifier_file(scoring_models: Path) -> str:
    return str(scoring_models / "classes" / "1" / "model.onnx")


@pytest.fixture(scope="session")
def segmenter_file(scoring_models: Path) -> str:
    return str(scoring_models / "masks" / "1" / "model.onnx")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures, of which every 16th is broken."""
    return fill(tmp_path_factory.mktemp("photos"), 200)
