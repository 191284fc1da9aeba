"""What tests of `convoy adopt` do: adopt a file, see it refused, and run what came out."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from convoy.service import cli, metadata
from convoy.service.metadata import Document
from tests.models.onnx_import.networks import SIDE


def adopt(file: Path, *options: str) -> tuple[onnx.ModelProto, Document]:
    """The adopted file; the original is as it was."""
    before, repository = file.read_bytes(), file.parent / "repository"
    assert cli.run(["adopt", str(file), "--repository", str(repository), "--name", "it", *options]) == 0
    assert file.read_bytes() == before
    path = max((repository / "it").iterdir(), key=lambda folder: int(folder.name)) / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    document = metadata.decode({entry.key: entry.value for entry in model.metadata_props})
    assert document is not None
    return model, document


def refused(capsys: pytest.CaptureFixture[str], file: Path, *options: str) -> str:
    """The one line that says why, after the steps; nothing is written."""
    before, repository = file.read_bytes() if file.exists() else b"", file.parent / "refused"
    assert cli.run(["adopt", str(file), "--repository", str(repository), *options]) == 2
    assert not repository.exists()
    assert (file.read_bytes() if file.exists() else b"") == before
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ..."))
    return line.removeprefix("convoy adopt: ")


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})


def pictures(count: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 3), np.uint8)


def softmax(logits: np.ndarray, axis: int = 1) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)
