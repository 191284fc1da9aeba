"""What a data set offers: three splits of images or tensors with their targets, and what a served file must say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from convoy.service.metadata import Task, TensorInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SplitName = Literal["train", "validation", "test"]
Sample: TypeAlias = "NDArray[Any]"  # uint8 or float32
Target: TypeAlias = "int | NDArray[np.uint8]"
IGNORE = 255  # in a mask: a pixel of no class, or one that was padded


class Split(Protocol):
    """Images, or tensors, by index, the same ones every time. `test` is the held-out split: nothing is chosen by it."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, ...]:
        """Height and width of an image, or the shape of a tensor, known without making it."""
        ...

    def __getitem__(self, index: int) -> tuple[Sample, Target]:
        """An image (H, W, C), 0..255, with its class; for segmentation the class of each pixel, (H, W).

        Or a tensor, with the axes and of the dtype that its `TensorInput` tells, with its class.
        """
        ...


@dataclass(frozen=True)
class DataSet:
    """`mean` and `std` are per channel, of pixels in 0..1, or of the numbers of a tensor (bytes in 0..1, too).
    `labels[i]` names class i, `palette[i]` is its colour. It has images of a `colour`, or else tensors."""

    name: str
    task: Task
    colour: Literal["RGB", "L"] | None
    labels: list[str]
    palette: list[tuple[int, int, int]] | None
    mean: list[float]
    std: list[float]
    split: Callable[[SplitName], Split]
    # Changes a training batch, (N, C, H, W) float32 normalised, drawing from torch's global generator.
    augment: "Callable[[Tensor], Tensor] | None" = None
    tensor: TensorInput | None = None

    @property
    def channels(self) -> int:
        if self.tensor is not None:
            return self.tensor.channels
        return 3 if self.colour == "RGB" else 1
