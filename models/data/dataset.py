"""What a data set offers: three splits of uint8 images with their targets, and what a served file must say of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.metadata import Task

SplitName = Literal["train", "validation", "test"]
Target = int | NDArray[np.uint8]


class Split(Protocol):
    """Images by index, the same ones every time. `test` is the held-out split: nothing is chosen by it."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, known without making it."""
        ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        """An image (H, W, C), 0..255, with its class; for segmentation the class of each pixel, (H, W)."""
        ...


@dataclass(frozen=True)
class DataSet:
    """`mean` and `std` are per channel, of pixels in 0..1. `labels[i]` names class i, `palette[i]` is its colour."""

    name: str
    task: Task
    colour: Literal["RGB", "L"]
    labels: list[str]
    palette: list[tuple[int, int, int]] | None
    mean: list[float]
    std: list[float]
    split: Callable[[SplitName], Split]
    # Changes a training batch, (N, C, H, W) float32 normalised, drawing from torch's global generator.
    augment: Callable[[Tensor], Tensor] | None = None
