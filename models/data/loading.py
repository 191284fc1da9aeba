"""Batches in the order of their sampler, made ahead in threads: the same ones however many threads or processes."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """`images` (N, H, W, C) uint8, or tensors; `targets` int64, (N,) or, for segmentation, (N, H, W) with IGNORE in
    the padding."""

    images: Tensor
    targets: Tensor


class Order(Protocol):
    """Indices of the images of one batch after another, other ones in every epoch."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class Made(Protocol):
    """Batches by the indices of their images, the same ones every time."""

    def __getitem__(self, indices: list[int]) -> Batch: ...


class Share(NamedTuple):
    """Which of `processes` this is. Each takes its part of every batch, so that together they see what one would."""

    rank: int = 0
    processes: int = 1

    def part(self, batch: list[int]) -> list[int]:
        """The indices of a batch that are this process's; none where there are fewer than processes."""
        start, stop = (turn * len(batch) // self.processes for turn in (self.rank, self.rank + 1))
        return batch[start:stop]


WHOLE = Share()


class Loader:
    """One epoch of batches each time it is gone through.

    Threads, not processes: what decodes and resizes pictures lets other threads run meanwhile, nothing is copied, and
    a split that keeps or counts what it has read does so once.

    workers  threads that make batches ahead; 0 makes each when it is asked for
    share    the part of each batch that is made here. Of a batch without any, the first image is made, with targets
             that are all `ignore`: processes take their steps together
    """

    batch_sampler = None  # Lightning looks for one beside a sampler

    def __init__(
        self, made: Made, sampler: Order, workers: int = 0, share: Share = WHOLE, ignore: int | None = None
    ) -> None:
        self.made, self.sampler = made, sampler  # Lightning tells the epoch to what is called `sampler`
        self.workers, self.share, self.ignore = workers, share, ignore
        self.waited = 0.0  # seconds in which whoever takes the batches had to wait for one
        self.taken = 0  # batches of this epoch
        self.skipped = 0  # batches of the next epoch that are left out, because they were taken before

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # All this happens at the first batch: Lightning makes the iterator before it tells the epoch.
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
        """How far the epoch is."""
        return {"taken": self.taken % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch where that of the checkpoint was."""
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
