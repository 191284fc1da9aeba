"""Batches in the order of their sampler, prefetched by threads. They do not depend on the number of threads or
processes."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """`images` (N, H, W, C) uint8, or tensors; `targets` int64, (N,) or, for segmentation, (N, H, W) with IGNORE in the
    padding."""

    images: Tensor
    targets: Tensor


class Order(Protocol):
    """Indices of the images of each batch, in a new order in every epoch."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class Made(Protocol):
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
        self, made: Made, sampler: Order, workers: int = 0, share: Share = WHOLE, ignore: int | None = None
    ) -> None:
        self.made, self.sampler = made, sampler  # Lightning sets the epoch of the attribute `sampler`
        self.workers, self.share, self.ignore = workers, share, ignore
        self.waited = 0.0  # seconds that the consumer waited for batches
        self.taken = 0  # batches of this epoch, so far
        self.skipped = 0  # batches to skip in the next epoch, already used before the checkpoint

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator runs this at the first batch. Lightning creates the iterator before it sets the epoch.
        self.taken, self.skipped = self.skipped, 0
        batches = self._batches(islice(self.sampler, self.taken, None))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the progress within the epoch."""
        return {"taken": self.taken % max(1, len(self))}

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
            return self.made[own]
        images, targets = self.made[indices[:1]]
        assert self.ignore is not None, "a batch smaller than the processes are many"
        return Batch(images, targets.fill_(self.ignore))
