"""A split whose samples are made when they are first asked for, and kept."""

from collections.abc import Callable, Sequence

from convoy.models.data.dataset import Sample, Target


class MadeSplit:
    """Samples by index. `sizes` has the size of each, and `make` makes it: the same one every time."""

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
