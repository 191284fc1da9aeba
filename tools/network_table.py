"""Writes `docs/networks.md`: each architecture's size, cost, and parity and speed of its exported file in onnxruntime.

Usage: `python -m tools.network_table FILE`. Every network is built at its own size with random weights and exported.
The files are then run in turns, so that a slow moment of the machine affects all networks.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convoy.models import registry, runtime, zoo
from convoy.models.analysis.operators import FREE_SIDE
from convoy.models.analysis.summary import totals
from convoy.models.data.builtin.generated import generated
from convoy.models.export.export import Exported, export
from convoy.models.registry import ARCHITECTURES
from convoy.service.metadata import InputSpec

CLASSES = {("classification", 3): 1000, ("classification", 1): 10, ("segmentation", 3): 21}  # by task and channels
TENSOR_CLASSES = 10
FREE_SIZE = (256, 256)  # the size at which networks for any size are counted and timed
ROUNDS = 9
COLUMNS = ("name", "paper", "input", "classes", "parameters", "multiply-adds", "file MB", "parity", "ms an image")


@dataclass(frozen=True)
class Measured:
    """Measurements of one architecture. `difference` is the largest difference of any probability between onnxruntime
    and PyTorch, `agreement` the share of equal classes, `image_ms` the median time of a run with one image."""

    name: str
    size: tuple[int, ...]
    classes: int
    parameters: int
    multiply_adds: int
    file_bytes: int
    difference: float
    agreement: float
    image_ms: float


def measure(names: Sequence[str], rounds: int = ROUNDS) -> list[Measured]:
    """Exports these architectures with random weights and times them. Raises ParityRefused."""
    with tempfile.TemporaryDirectory() as folder:
        exported = {name: _export(name, Path(folder)) for name in names}
        times = _times(exported, rounds)
        return [_measured(name, exported[name], times[name]) for name in names]


def table(rows: Sequence[Measured]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [COLUMNS, ("---", "---", "---", *("---:",) * (len(COLUMNS) - 3)), *map(_cells, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _export(name: str, folder: Path) -> Exported:
    print(f"{name} ...", file=sys.stderr, flush=True)
    path = folder / "untrained.ckpt"
    zoo.untrained(name, path, _classes(name))
    return export(path, folder / "repository")


def _classes(name: str) -> int:
    row = registry.architecture(name)
    return CLASSES[row.task, row.input.channels] if isinstance(row.input, InputSpec) else TENSOR_CLASSES


def _times(exported: dict[str, Exported], rounds: int) -> dict[str, float]:
    sessions = {name: runtime.session(file.path) for name, file in exported.items()}
    images = {name: _image(name, file) for name, file in exported.items()}
    seconds: dict[str, list[float]] = {name: [] for name in exported}
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {exported[name].document.takes.name: images[name]})
            seconds[name].append(time.perf_counter() - start)
    # A session's first run also allocates.
    return {name: 1000 * statistics.median(spans[1:]) for name, spans in seconds.items()}


def _image(name: str, file: Exported) -> NDArray[np.generic]:
    spec, tensor, sides = registry.architecture(name).input, file.document.takes, iter(_size(name))
    image, _ = generated(spec)[0]
    shape = [tensor.channels if axis.name == "channel" else next(sides) for axis in tensor.axes]
    return np.resize(image, (1, *shape))


def _size(name: str) -> tuple[int, ...]:
    spec = registry.architecture(name).input
    if isinstance(spec, InputSpec):
        return registry.sides(spec) or FREE_SIZE
    return tuple(axis.size or FREE_SIDE for axis in spec.axes if axis.name != "channel")


def _measured(name: str, file: Exported, image_ms: float) -> Measured:
    parity = file.document.parity
    assert parity is not None
    agreement = parity.top1_agreement if parity.mask_agreement is None else parity.mask_agreement
    assert agreement is not None
    cost = totals(name, size=_size(name), classes=_classes(name))
    return Measured(
        name=name,
        size=_size(name),
        classes=_classes(name),
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        file_bytes=file.path.stat().st_size,
        difference=parity.max_abs_difference,
        agreement=agreement,
        image_ms=image_ms,
    )


def _cells(row: Measured) -> tuple[str, ...]:
    size = "x".join(map(str, row.size))
    free = registry.sides(ARCHITECTURES[row.name].input) is None
    return (
        f"`{row.name}`",
        ARCHITECTURES[row.name].paper,
        f"any ({size})" if free else size,
        f"{row.classes:,}",
        f"{row.parameters:,}",
        f"{row.multiply_adds:,}",
        f"{row.file_bytes / 1e6:,.1f}",
        f"{row.difference:.0e}, {row.agreement:.3%}",
        f"{row.image_ms:,.1f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("names", nargs="*", default=list(ARCHITECTURES), metavar="NAME")
    arguments = parser.parse_args()
    rows = measure(arguments.names)
    arguments.file.write_text(INTRODUCTION + table(rows), encoding="utf-8")


INTRODUCTION = f"""# Networks

Written by `make networks`: every architecture of `convoy train`, exported with random weights and run by onnxruntime
{onnxruntime.__version__} on the CPU.

- *Parameters* count the moving statistics of batch normalisation, and GoogLeNet's heads for training;
  *multiply-adds* are those of one image at that size.
- *Parity* is the largest difference of any probability between onnxruntime and PyTorch, and the share of equal answers
  (images, or pixels of a mask).
- *ms an image* is the median over {ROUNDS} rounds in which all the files were run in turns, on whatever machine wrote
  this table, with one image at a time: read it as a ratio between networks.
- Networks for any size are counted and timed at {FREE_SIZE[0]}x{FREE_SIZE[1]}.

"""

if __name__ == "__main__":
    main()
