"""Batches for training and evaluation, prefetched by threads. They do not depend on the number of threads or processes.

Images are fitted to the input by the same code as in serving; tensors are unchanged.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convoy.models.data.augmentation import augmented, window, zoomed
from convoy.models.data.dataset import IGNORE, Split, Target
from convoy.models.settings import Augmentation
from convoy.service.metadata import InputSpec, TensorInput
from convoy.service.preprocess import input_size, preprocess

# Maximum pixels or numbers in a batch without a seed: a full batch of photographs would not fit into memory.
MAX_NUMBERS = 4 << 20
OFF = Augmentation()


class Batch(NamedTuple):
    """`images` (N, H, W, C) uint8, or tensors; `targets` int64, (N,) or, for segmentation, (N, H, W) with IGNORE in the
    padding."""

    images: Tensor
    targets: Tensor


class BatchOrder(Protocol):
    """Indices of the images of each batch, in a new order in every epoch."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class BatchSource(Protocol):
    """Batches by the indices of their images, the same on every access."""

    def __getitem__(self, indices: list[int]) -> Batch: ...


class Share(NamedTuple):
    """This process's place among `processes`. Each processes its part of every batch; together the parts are the whole
    batch."""

    rank: int = 0
    processes: int = 1

    def part(self, batch: list[int]) -> list[int]:
        """Returns the indices of a batch for this process; may be empty if the batch is smaller than the number of
        processes."""
        start, stop = (turn * len(batch) // self.processes for turn in (self.rank, self.rank + 1))
        return batch[start:stop]


WHOLE = Share()


class Allowance:
    """Bytes of memory that several loaders may use for samples. Loaders take from it in several threads."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Reserves bytes if that many are left. Returns whether they were."""
        with self.lock:
            if count > self.free_bytes:
                return False
            self.free_bytes -= count
            return True


NOTHING = Allowance(0)


class Loader:
    """Iterable of the batches of one epoch.

    Uses threads, not processes: decoding and resizing images releases the interpreter lock, nothing is copied, and a
    split that caches or counts what it reads does so once.

    workers  threads that prefetch batches; 0 makes each batch on demand
    share    the part of each batch that is made here. If the part is empty, the first image is used instead, with all
             targets set to `ignore`, because all processes step together
    """

    batch_sampler = None  # Lightning expects this attribute beside `sampler`

    def __init__(
        self,
        source: BatchSource,
        sampler: BatchOrder,
        workers: int = 0,
        share: Share = WHOLE,
        ignore: int | None = None,
    ) -> None:
        self.source, self.sampler = source, sampler  # Lightning sets the epoch of the attribute `sampler`
        self.workers, self.share, self.ignore = workers, share, ignore
        self.waited = 0.0  # seconds that the consumer waited for batches
        self.position = 0  # batches of this epoch, so far
        self.skipped = 0  # batches to skip in the next epoch, already used before the checkpoint

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator runs this at the first batch. Lightning creates the iterator before it sets the epoch.
        self.position, self.skipped = self.skipped, 0
        batches = self._batches(islice(self.sampler, self.position, None))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the progress within the epoch."""
        return {"taken": self.position % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next epoch start at the checkpoint's position."""
        self.skipped = state["taken"]

    def _batches(self, order: Iterable[list[int]]) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self._make, order)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batches")
        ahead: deque[Future[Batch]] = deque()
        try:
            for indices in order:
                ahead.append(pool.submit(self._make, indices))
                if len(ahead) > self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, indices: list[int]) -> Batch:
        own = self.share.part(indices)
        if own:
            return self.source[own]
        images, targets = self.source[indices[:1]]
        assert self.ignore is not None, "a batch smaller than the processes are many"
        return Batch(images, targets.fill_(self.ignore))


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
    allowance: Allowance = NOTHING,
) -> Loader:
    """Returns batches of a split. All images of a batch have one size. With a seed, batches are shuffled in each epoch.

    `crop` cuts a square of that side from each image, at a new position in every epoch; smaller images are padded. It
    needs a seed and an input of any size. `augmentation` needs a seed and images. Its effect on an image depends only
    on the seed, the epoch and the image's index, so that a resumed run and parallel processes produce the same images.
    As many images as `allowance` covers are read from their files once only. The other arguments are those of `Loader`.
    """
    if isinstance(spec, TensorInput):
        shapes = [split.size(index) for index in range(len(split))]
        return Loader(_Tensors(split), SameSize(shapes, batch_size, seed), workers, share, ignore)
    if crop is None:
        sizes = [input_size(spec, *split.size(index)) for index in range(len(split))]
    else:
        sizes = [input_size(spec, crop, crop)] * len(split)
    sampler = SameSize(sizes, batch_size, seed)
    images = _Images(split, spec, sampler, crop, augmentation, allowance)
    return Loader(images, sampler, workers, share, ignore)


def indexed(split: Split, spec: InputSpec | TensorInput, batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Yields batches of a split, each with the indices of its images."""
    batches = loader(split, spec, batch_size)
    yield from zip(batches.sampler, batches, strict=True)  # without a seed the order is the same every time


class SameSize:
    """Batches of indices, each of one size; in order, or shuffled by the seed and the epoch.

    Without a seed, batches of large images have fewer images, since the batch size then does not change the results.
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
        """Sets the epoch; Lightning calls this before each one."""
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
            self.batch_size if self.seed is not None else min(self.batch_size, max(1, MAX_NUMBERS // math.prod(size)))
        )


class _Tensors:
    """Batches of tensors of one shape, by their indices."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: list[int]) -> Batch:
        tensors, targets = zip(*map(self.split.__getitem__, indices), strict=True)
        return Batch(torch.from_numpy(np.stack(tensors)), torch.tensor(targets))


class _Images:
    """Batches of images by their indices; after fitting, all images of a batch have one size.

    Keeps what is the same in every epoch: the fitted image, or the original if it is cropped or augmented anew.
    """

    def __init__(
        self,
        split: Split,
        spec: InputSpec,
        sampler: SameSize,
        crop: int | None,
        augmentation: Augmentation,
        allowance: Allowance,
    ) -> None:
        self.split, self.spec, self.sampler, self.crop, self.how = split, spec, sampler, crop, augmentation
        self.allowance = allowance
        self.kept: dict[int, tuple[NDArray[Any], Target]] = {}

    def __getitem__(self, indices: list[int]) -> Batch:
        images, targets = zip(*map(self._fit, indices), strict=True)
        return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.asarray(targets)).long())

    def _fit(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        image, target = self._constant(index)
        if self.crop is None and not self.how.changes_images:
            return image, target
        # The draws depend only on seed, epoch and index, so that a resumed run has the same images.
        random = np.random.default_rng((self.sampler.seed or 0, self.sampler.epoch, index))
        if self.crop is not None and isinstance(target, np.ndarray):
            square = _square(random, image, self.crop)
            image, target = image[square], target[square]
        if not self.how.changes_images:
            return self._placed(index, image, target)
        view = window(random, image.shape[0], image.shape[1], self.how.random_crop)
        mask = target if isinstance(target, np.ndarray) else None
        if self.spec.fit == "pad":
            image, mask = augmented(random, *zoomed(image, mask, view), self.how)
            return self._placed(index, image, target if mask is None else mask)
        # Cropped at the original resolution, then augmented at the input size.
        out, placed = self._placed(index, view.of(image), target)
        return augmented(random, out, None, self.how)[0], placed

    def _constant(self, index: int) -> tuple[NDArray[Any], Target]:
        """Returns what is the same in every epoch."""
        kept = self.kept.get(index)
        if kept is None:
            image, target = self.split[index]
            constant = self.crop is None and not self.how.changes_images
            kept = self._placed(index, image, target) if constant else (image, target)
            if self.allowance.take(sum(part.nbytes for part in kept if isinstance(part, np.ndarray))):
                self.kept[index] = kept
        return kept

    def _placed(self, index: int, image: NDArray[np.uint8], target: Target) -> tuple[NDArray[np.uint8], Target]:
        height, width = self.sampler.sizes[index]
        out = np.empty((height, width, self.spec.channels), np.uint8)
        placed = preprocess(image, self.spec, out)
        if not isinstance(target, np.ndarray):
            return out, target
        mask = np.full((height, width), IGNORE, np.uint8)
        mask[placed.top : placed.top + placed.height, placed.left : placed.left + placed.width] = target
        return out, mask


def _square(random: np.random.Generator, image: NDArray[np.uint8], side: int) -> tuple[slice, slice]:
    top, left = (int(random.integers(max(1, length - side + 1))) for length in image.shape[:2])
    return slice(top, top + side), slice(left, left + side)
