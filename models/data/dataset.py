"""Interface of a data set: three splits of images or tensors with their targets, and the metadata of an exported
file."""

from collections.abc import Callable, Sequence
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
IGNORE = 255  # in a mask: a pixel without a class, or padding


class Split(Protocol):
    """Images or tensors by index, the same on every access. `test` is the held-out split: no choice is based on it."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, ...]:
        """Returns the height and width of an image, or the shape of a tensor, without making it."""
        ...

    def __getitem__(self, index: int) -> tuple[Sample, Target]:
        """Returns an image (H, W, C), 0..255, with its class; for segmentation, with the class of each pixel, (H, W).

        Or a tensor with its class; the tensor has the axes and the dtype of its `TensorInput`.
        """
        ...


class Subset:
    """Samples of a split, in the order of `indices`."""

    def __init__(self, split: Split, indices: Sequence[int]) -> None:
        self.split, self.indices = split, indices

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, index: int) -> tuple[int, ...]:
        return self.split.size(self.indices[index])

    def __getitem__(self, index: int) -> tuple[Sample, Target]:
        return self.split[self.indices[index]]


@dataclass(frozen=True)
class DataSet:
    """`mean` and `std` are per channel, of pixels in 0..1 or of the numbers of a tensor (bytes in 0..1, too).
    `labels[i]` is the name of class i, `palette[i]` its colour. `colour` is None for tensors. `left_out` names each
    image of a user's that cannot be used, and the problem."""

    name: str
    task: Task
    colour: Literal["RGB", "L"] | None
    labels: list[str]
    palette: list[tuple[int, int, int]] | None
    mean: list[float]
    std: list[float]
    split: Callable[[SplitName], Split]
    # Augments a training batch, (N, C, H, W) float32 normalised, with draws from torch's global generator.
    augment: "Callable[[Tensor], Tensor] | None" = None
    tensor: TensorInput | None = None
    left_out: Sequence[str] = ()

    @property
    def channels(self) -> int:
        if self.tensor is not None:
            return self.tensor.channels
        return 3 if self.colour == "RGB" else 1
