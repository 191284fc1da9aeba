"""Batches as training and evaluation take them: every image brought to the input by the very code that serving runs,
every tensor as it is."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from convoy.models.data.augmentation import augmented, window, zoomed
from convoy.models.data.dataset import IGNORE, Split, Target
from convoy.models.data.loading import WHOLE, Batch, Loader, Share
from convoy.models.recipe import Augmentation
from convoy.service.metadata import InputSpec, TensorInput
from convoy.service.preprocess import input_size, preprocess

# Pixels, or numbers, of a batch that is only looked at: one of photographs would fill the memory.
MOST_NUMBERS = 4 << 20
OFF = Augmentation()


def loader(
    split: Split,
    spec: InputSpec | TensorInput,
    batch_size: int,
    seed: int | None = None,
    crop: int | None = None,
    augmentation: Augmentation = OFF,
    workers: int = 0,
    share: Share = WHOLE,
    ignore: int | None = None,
) -> Loader:
    """Batches of a split, the images of one batch of one size; shuffled by epoch where there is a seed.

    With `crop`, of each image a square of that side, elsewhere in every epoch; what an image is too small for is
    padding. It goes with a seed and an input of any size. `augmentation` goes with a seed and images: what it does to
    an image hangs on the seed, the epoch and the image's index alone, so that a resumed run, and each of several
    processes, makes the same ones. The rest is as in `loading.Loader`.
    """
    if isinstance(spec, TensorInput):
        shapes = [split.size(index) for index in range(len(split))]
        return Loader(_Tensors(split), SameSize(shapes, batch_size, seed), workers, share, ignore)
    if crop is None:
        sizes = [input_size(spec, *split.size(index)) for index in range(len(split))]
    else:
        sizes = [input_size(spec, crop, crop)] * len(split)
    sampler = SameSize(sizes, batch_size, seed)
    return Loader(_Batches(split, spec, sampler, crop, augmentation), sampler, workers, share, ignore)


def indexed(split: Split, spec: InputSpec | TensorInput, batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches of a split, each with the indices of its images."""
    batches = loader(split, spec, batch_size)
    yield from zip(batches.sampler, batches, strict=True)  # without a seed the order is the same every time


class SameSize:
    """Indices in batches, each of one size; in their order, or shuffled as the seed and the epoch say.

    Without a seed, where how many go together changes nothing, there are fewer of large ones in a batch.
    """

    def __init__(self, sizes: Sequence[tuple[int, ...]], batch_size: int, seed: int | None) -> None:
        self.sizes = sizes
        self.groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            self.groups[size].append(index)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(group) // self._most(size)) for size, group in self.groups.items())

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            yield from (batch for size, group in self.groups.items() for batch in self._batches(size, group))
            return
        random = np.random.default_rng((self.seed, self.epoch))
        groups = [(size, random.permutation(group).tolist()) for size, group in self.groups.items()]
        batches = [batch for size, group in groups for batch in self._batches(size, group)]
        yield from (batches[turn] for turn in random.permutation(len(batches)))

    def _batches(self, size: tuple[int, ...], group: list[int]) -> Iterator[list[int]]:
        most = self._most(size)
        return (group[start : start + most] for start in range(0, len(group), most))

    def _most(self, size: tuple[int, ...]) -> int:
        return (
            self.batch_size if self.seed is not None else min(self.batch_size, max(1, MOST_NUMBERS // math.prod(size)))
        )


class _Tensors:
    """Batches by the indices of their tensors, which are of one shape."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: list[int]) -> Batch:
        tensors, targets = zip(*map(self.split.__getitem__, indices), strict=True)
        return Batch(torch.from_numpy(np.stack(tensors)), torch.tensor(targets))


class _Batches:
    """Batches by the indices of their images, which end up equally large."""

    def __init__(
        self, split: Split, spec: InputSpec, sampler: SameSize, crop: int | None, augmentation: Augmentation
    ) -> None:
        self.split, self.spec, self.sampler, self.crop, self.how = split, spec, sampler, crop, augmentation

    def __getitem__(self, indices: list[int]) -> Batch:
        images, targets = zip(*map(self._fit, indices), strict=True)
        return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets)).long())

    def _fit(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
        image, target = self.split[index]
        # By the epoch and the index alone, so that a resumed run sees the same ones.
        random = np.random.default_rng((self.sampler.seed or 0, self.sampler.epoch, index))
        if self.crop is not None and isinstance(target, np.ndarray):
            square = _window(random, image, self.crop)
            image, target = image[square], target[square]
        if not self.how.changes_images:
            return self._placed(index, image, target)
        seen = window(random, image.shape[0], image.shape[1], self.how.random_crop)
        mask = target if isinstance(target, np.ndarray) else None
        if self.spec.fit == "pad":
            image, mask = augmented(random, *zoomed(image, mask, seen), self.how)
            return self._placed(index, image, target if mask is None else mask)
        # Cut out before it is made smaller, changed at the size at which it is seen.
        out, placed = self._placed(index, seen.of(image), target)
        return augmented(random, out, None, self.how)[0], placed

    def _placed(
        self, index: int, image: NDArray[np.uint8], target: Target
    ) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
        height, width = self.sampler.sizes[index]
        out = np.empty((height, width, self.spec.channels), np.uint8)
        placed = preprocess(image, self.spec, out)
        if not isinstance(target, np.ndarray):
            return out, np.asarray(target)
        mask = np.full((height, width), IGNORE, np.uint8)
        mask[placed.top : placed.top + placed.height, placed.left : placed.left + placed.width] = target
        return out, mask


def _window(random: np.random.Generator, image: NDArray[np.uint8], side: int) -> tuple[slice, slice]:
    top, left = (int(random.integers(max(1, length - side + 1))) for length in image.shape[:2])
    return slice(top, top + side), slice(left, left + side)
