"""A split whose samples are generated on first access and cached."""

from collections.abc import Callable, Sequence

from convoy.models.data.dataset import Sample, Target


class MadeSplit:
    """Samples by index. `sizes` contains their sizes, and `make` generates them deterministically."""

    def __init__(self, sizes: Sequence[tuple[int, ...]], make: Callable[[int], tuple[Sample, Target]]) -> None:
        self.sizes = sizes
        self.make = make
        self.made: dict[int, tuple[Sample, Target]] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, ...]:
        return self.sizes[index]

    def __getitem__(self, index: int) -> tuple[Sample, Target]:
        if index not in self.made:
            self.made[index] = self.make(index)
        return self.made[index]
