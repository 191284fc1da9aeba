"""docs/networks.md says of every network what is so."""

import re
from pathlib import Path

import pytest
import torch

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.registry import ARCHITECTURES
from tools.network_table import COLUMNS, Measured, measure, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "networks.md"


def rows(text: str) -> dict[str, dict[str, str]]:
    """The cells of each network by the names of the columns."""
    lines = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.splitlines() if "|" in line]
    columns, _, *cells = lines
    return {row[0].strip("`"): dict(zip(columns, row, strict=True)) for row in cells}


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_document_has_the_parameters_of_every_network(name: str) -> None:
    row = rows(DOCUMENT.read_text())[name]
    with torch.device("meta"):
        channels = ARCHITECTURES[name].input.channels
        network = registry.build(name, channels=channels, classes=number(row["classes"]))
    assert number(row["parameters"]) == count(network).total, "run `make networks`"
    assert row["paper"] == ARCHITECTURES[name].paper


def test_document_shows_that_every_exported_network_answers_as_pytorch_does() -> None:
    for row in rows(DOCUMENT.read_text()).values():
        difference, agreement = re.fullmatch(r"(\S+), (\S+)%", row["parity"]).groups()  # type: ignore[union-attr]
        assert float(difference) <= 1e-4
        assert float(agreement) >= 99.99


def test_measured_network_is_exported_counted_and_timed() -> None:
    (lenet5,) = measure(["lenet5"], rounds=2)
    assert (lenet5.size, lenet5.classes, lenet5.parameters) == ((32, 32), 10, 60_850)
    # C3 runs as a dense convolution: the connections that the paper leaves out are multiplied, too.
    assert lenet5.multiply_adds == 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
    assert lenet5.file_bytes > 4 * lenet5.parameters
    assert lenet5.difference <= 1e-4
    assert lenet5.agreement == 1
    assert lenet5.image_ms > 0


def test_table_has_a_line_for_each_network() -> None:
    one = Measured("unet", (256, 256), 21, 1_234_567, 89_000_000, 5_000_000, 2.4e-6, 1.0, 12.345)
    row = rows(table([one]))["unet"]
    assert tuple(row) == COLUMNS
    assert row["parameters"] == "1,234,567"
    assert row["input"] == "any (256x256)"
    assert row["parity"] == "2e-06, 100.000%"
    assert row["ms an image"] == "12.3"
