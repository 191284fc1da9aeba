"""The programs for Spark and Dask in docs/scoring-engines.md, run over pandas frames: neither is installed here."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from convoy.service.scoring.score import Score
from tests.documents.pages import BLOCKS
from tests.service import networks

PROGRAMS = {
    name: block.text
    for block in BLOCKS
    if block.page == "docs/scoring-engines.md" and block.language == "python"
    for name in ("Spark", "Dask")
    if name.lower() in block.text
}


class Frames:
    """As much of a data frame of Spark and of Dask as the programs use: parts that are pandas frames."""

    def __init__(self, parts: list[pd.DataFrame]) -> None:
        self.parts = parts
        self.columns: list[str] = []
        self.written = ""

    def select(self, *names: str) -> "Frames":
        return Frames([part[list(names)] for part in self.parts])

    def mapInPandas(self, function: Callable[[Iterator[Any]], Iterator[pd.DataFrame]], schema: str) -> "Frames":
        scored = Frames(list(function(iter(self.parts))))
        scored.columns = [field.split()[0] for field in schema.split(", ")]
        return scored

    def map_partitions(self, function: Callable[[Any], pd.DataFrame], meta: pd.DataFrame) -> "Frames":
        scored = Frames([function(part) for part in self.parts])
        scored.columns = list(meta.columns)
        return scored

    @property
    def write(self) -> "Frames":
        return self

    def parquet(self, path: str) -> None:
        RESULTS.append(self)
        self.written = path

    to_parquet = parquet


class Reader:
    """Spark's reader of files."""

    def __init__(self, frames: Frames) -> None:
        self.read = self
        self._frames = frames

    def format(self, name: str) -> "Reader":
        assert name == "binaryFile"
        return self

    def option(self, name: str, value: str) -> "Reader":
        assert (name, value) == ("recursiveFileLookup", "true")
        return self

    def load(self, path: str) -> Frames:
        return self._frames


RESULTS: list[Frames] = []


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Images, one of them broken; the model of the page is in the working directory."""
    networks.save(networks.classifier(), tmp_path, "letters").rename(tmp_path / "holiday.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "RESULTS", [])
    chance = np.random.default_rng(1)
    found = []
    for index in range(10):
        PIL.Image.fromarray(chance.integers(0, 256, (8, 8), np.uint8)).save("image.png")
        found.append((f"{index}.png", Path("image.png").read_bytes() if index != 7 else b"no picture"))
    return found


def parts(images: list[tuple[str, bytes]], names: list[str]) -> Frames:
    """Two frames, of which the second has rows whose labels do not begin at 0, as partitions do."""
    frame = pd.DataFrame(images, columns=pd.Index(names))
    frame["length"] = frame[names[1]].map(len)
    return Frames([frame[:6], frame[6:]])


def check(images: list[tuple[str, bytes]]) -> None:
    (result,) = RESULTS
    assert result.written == "scored"
    wanted = Score("holiday.onnx", top_k=3)({"id": [each for each, _ in images], "bytes": [data for _, data in images]})
    assert result.columns == list(wanted)
    for part in result.parts:
        assert list(part.columns) == result.columns
    table = pd.concat(result.parts)
    # pandas has NaN where a text is missing.
    scored = {name: [None if isinstance(each, float) else each for each in table[name]] for name in wanted}
    assert scored == wanted
    assert [error is not None for error in wanted["error"]] == [index == 7 for index in range(10)]


def test_the_program_for_spark_scores_frames(images: list[tuple[str, bytes]]) -> None:
    exec(PROGRAMS["Spark"], {"spark": Reader(parts(images, ["path", "content"]))})
    check(images)


def test_the_program_for_dask_scores_partitions(
    images: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dask, frames = ModuleType("dask"), ModuleType("dask.dataframe")
    table = parts(images, ["id", "image"])
    frames.read_parquet = lambda path, columns, split_row_groups: table  # type: ignore[attr-defined]
    dask.dataframe = frames  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask", dask)
    monkeypatch.setitem(sys.modules, "dask.dataframe", frames)
    exec(PROGRAMS["Dask"], {})
    check(images)
