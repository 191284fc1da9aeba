"""Generated samples: a split that generates and caches its samples, and images and tensors without content, for weights
that come without their training data."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.models.data.dataset import Sample, Split, Target
from convoy.service.metadata import InputSpec, TensorInput

SEED = 1966
COUNT = 64
SIZES = ((64, 96), (97, 65), (80, 80))  # height and width in rotation, for inputs of any size
LENGTHS = (96, 97, 130)  # of a free axis of a tensor, in rotation
CELLS = (32, 8, 2)  # pixels per cell of the coarse, medium and fine texture


def generated(spec: InputSpec | TensorInput) -> Split:
    """Returns samples for an input. They have no content; their class is always 0."""
    return GeneratedSplit(spec) if isinstance(spec, InputSpec) else GeneratedTensors(spec)


class GeneratedSplit:
    """Colour or grey textures of several scales, in the size of the input; deterministic. They have no content; their
    class is always 0."""

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return COUNT

    def size(self, index: int) -> tuple[int, int]:
        if self.spec.height is None or self.spec.width is None:
            return SIZES[index % len(SIZES)]
        return self.spec.height, self.spec.width

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        random = np.random.default_rng((SEED, index))
        height, width = self.size(index)
        image = np.full((height, width, self.spec.channels), random.uniform(60, 190), np.float32)
        for cell in CELLS:
            coarse = random.normal(0, 45, (height // cell + 2, width // cell + 2, self.spec.channels))
            image += enlarged(coarse.astype(np.float32), height, width)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), 0


class GeneratedTensors:
    """Uniformly distributed bytes, or normally distributed floats; free axes have several lengths."""

    def __init__(self, tensor: TensorInput) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return COUNT

    def size(self, index: int) -> tuple[int, ...]:
        return tuple(axis.size or LENGTHS[index % len(LENGTHS)] for axis in self.tensor.axes)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8] | NDArray[np.float32], int]:
        random = np.random.default_rng((SEED, index))
        if self.tensor.dtype == "uint8":
            return random.integers(0, 256, self.size(index), dtype=np.uint8), 0
        return random.standard_normal(self.size(index), dtype=np.float32), 0


def enlarged(coarse: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(h, w, C) -> (height, width, C), bicubic."""
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)
        for channel in np.moveaxis(coarse, -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


class CachedSplit:
    """Samples by index. `sizes` contains their sizes, and `make` generates them deterministically."""

    def __init__(self, sizes: Sequence[tuple[int, ...]], make: Callable[[int], tuple[Sample, Target]]) -> None:
        self.sizes = sizes
        self.make = make
        self.cache: dict[int, tuple[Sample, Target]] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, ...]:
        return self.sizes[index]

    def __getitem__(self, index: int) -> tuple[Sample, Target]:
        if index not in self.cache:
            self.cache[index] = self.make(index)
        return self.cache[index]
