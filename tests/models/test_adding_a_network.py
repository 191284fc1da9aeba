"""The example in docs/adding-a-network.md works as it is printed."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.models import classification, registry, zoo
from convoy.models.analysis.torch_reader import count
from convoy.models.export.export import export
from convoy.models.registry import ARCHITECTURES
from convoy.models.training.run import RunFolder
from convoy.service import cli

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-network.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The names that the printed file, row and test define; the file is in the package, the row in the registry."""
    network, row, test = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "all_cnn.py").write_text(network)
    monkeypatch.setattr(classification, "__path__", [*classification.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(ARCHITECTURES))
    names: dict[str, Any] = {"torch": torch, "count": count, **vars(registry)}
    exec("from convoy.models.classification.all_cnn import AllCNN", names)
    exec(row + test, names)
    yield names
    del sys.modules["convoy.models.classification.all_cnn"], vars(classification)["all_cnn"]


def test_printed_test_passes(example: dict[str, Any]) -> None:
    example["test_parameters_are_those_of_the_table"]()


def test_printed_network_is_trained_by_its_name(example: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--set", "width=4", "--size", "16x16", "--epochs", "1", "--output", str(run)]
    assert cli.run(["train", "all_cnn", "--data", "tiny-digits", *options]) == 0
    note = RunFolder(run).read()
    assert note is not None
    assert note.settings.arguments == {"width": 4}
    assert cli.run(["export", str(run / "last.ckpt"), "--repository", str(tmp_path / "repository")]) == 0


def test_printed_network_exports_with_the_parity_of_the_others(example: dict[str, Any], tmp_path: Path) -> None:
    zoo.untrained("all_cnn", tmp_path / "all_cnn.ckpt", classes=10)
    exported = export(tmp_path / "all_cnn.ckpt", tmp_path / "repository")
    assert exported.document.parity is not None
    assert exported.document.parity.max_abs_difference <= 1e-4
