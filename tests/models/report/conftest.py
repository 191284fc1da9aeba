"""Short runs that the reports are made of."""

from pathlib import Path

import pytest

from convoy.models.training.train import train
from tests.models.conftest import settings


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """The folder of a run of two epochs on digits."""
    train(settings(learning_rate=3e-3), tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    """The folder of a run of one epoch on scenes."""
    train(settings("unet", "tiny-scenes", epochs=1), tmp_path / "segmenter")
    return tmp_path / "segmenter"
