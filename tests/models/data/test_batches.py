"""Batches are the same ones in the same order however many threads make them and however many processes share them."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convoy.models.data.batches import NOTHING, OFF, WHOLE, Allowance, Batch, Loader, SameSize, Share
from convoy.models.data.batches import loader as load
from convoy.models.settings import Augmentation
from convoy.service.metadata import InputSpec

SIZES = [(4, 4)] * 13 + [(4, 8)] * 6


class Numbers:
    """Batches of images that hold their own index; some take longer than others."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked = 0

    def __getitem__(self, indices: list[int]) -> Batch:
        self.asked += 1
        time.sleep(self.seconds * (indices[0] % 3))
        return Batch(torch.tensor(indices).view(-1, 1, 1, 1), torch.tensor(indices))


def loader(workers: int = 0, share: Share = WHOLE, seconds: float = 0.0) -> Loader:
    return Loader(Numbers(seconds), SameSize(SIZES, 4, seed=7), workers, share, ignore=-100)


def epoch(loader: Loader, number: int) -> list[list[int]]:
    loader.sampler.set_epoch(number)
    return [batch.images.flatten().tolist() for batch in loader]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_change_neither_order_nor_content(workers: int) -> None:
    one, several = loader(), loader(workers, seconds=0.002)
    for number in range(2):
        assert epoch(several, number) == epoch(one, number)
    assert epoch(one, 0) != epoch(one, 1)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_together_see_each_batch_of_one_process(processes: int) -> None:
    whole = epoch(loader(), 3)
    batches = [list(loader(share=Share(rank, processes))) for rank in range(processes)]
    parts = [epoch(loader(share=Share(rank, processes)), 3) for rank in range(processes)]
    assert all(len(part) == len(whole) for part in parts)
    for turn, batch in enumerate(whole):
        own = [part[turn] for part in parts]
        assert all(own), "a process without an image cannot take the step"
        if len(batch) >= processes:
            assert [index for part in own for index in part] == batch
    # A batch of one image: the others run it, too, with targets that count for nothing.
    counted = [sum(int((batch.targets != -100).sum()) for batch in part) for part in batches]
    assert sum(counted) == len(SIZES)


def test_epoch_that_was_left_in_its_middle_goes_on_there_and_the_next_is_whole() -> None:
    first = loader(2)
    first.sampler.set_epoch(4)
    given = iter(first)
    before = [next(given).images.flatten().tolist() for _ in range(2)]
    state = first.state_dict()
    given.close()

    second = loader(2)
    second.load_state_dict(state)
    made_early = iter(second)  # before it is told the epoch
    second.sampler.set_epoch(4)
    after = [batch.images.flatten().tolist() for batch in made_early]
    assert before + after == epoch(loader(), 4)
    assert epoch(second, 5) == epoch(loader(), 5)


def test_what_was_taken_before_is_not_made_again() -> None:
    second = loader()
    second.load_state_dict({"taken": 3})
    assert len(list(second)) == len(second) - 3 == second.source.asked


def test_state_at_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    done = loader()
    assert epoch(done, 0)
    assert done.state_dict() == {"taken": 0}


class Files:
    """Images with masks, or classes, that count how often each is read."""

    def __init__(self, masks: bool) -> None:
        self.masks = masks
        self.reads = [0] * 12

    def __len__(self) -> int:
        return 12

    def size(self, _: int) -> tuple[int, int]:
        return 16, 24

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | int]:
        self.reads[index] += 1
        image = np.random.default_rng(index).integers(0, 256, (16, 24, 3), np.uint8)
        return image, image[..., 0] // 128 if self.masks else index


ANY_SIZE, FIXED = InputSpec(colour="RGB", multiple=16, fit="pad"), InputSpec(colour="RGB", height=8, width=8)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(
    ("spec", "crop", "augmentation"),
    [
        (FIXED, None, OFF),
        (FIXED, None, Augmentation(flip="both", random_crop=0.5, colour=0.2, erase=0.5)),
        (ANY_SIZE, None, OFF),
        (ANY_SIZE, 8, OFF),
        (ANY_SIZE, None, Augmentation(flip="both", random_crop=0.5, rotate=20, erase=0.5)),
    ],
)
def test_pictures_are_read_once_and_are_the_same_in_every_epoch_as_if_they_were_read_anew(
    spec: InputSpec, crop: int | None, augmentation: Augmentation, workers: int
) -> None:
    read: dict[bool, list[int]] = {}
    epochs: dict[bool, list[list[Batch]]] = {}
    for kept in (False, True):
        files = Files(masks=spec.fit == "pad")
        allowance = Allowance(1 << 20) if kept else NOTHING
        batches = load(files, spec, 5, 3, crop, augmentation, workers, allowance=allowance)
        epochs[kept] = []
        for number in range(3):
            batches.sampler.set_epoch(number)  # type: ignore[attr-defined]
            epochs[kept].append(list(batches))
        read[kept] = files.reads
    assert read == {False: [3] * 12, True: [1] * 12}
    for anew, again in zip(epochs[False], epochs[True], strict=True):
        for one, other in zip(anew, again, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
    first, second = (torch.cat([batch.images for batch in each]) for each in epochs[True][:2])
    assert not torch.equal(first, second)


def test_no_more_pictures_are_kept_than_the_memory_allows() -> None:
    allowance = Allowance(3 * 8 * 8 * 3 + 1)
    for files, kept in ((Files(masks=False), 3), (Files(masks=False), 0)):  # the second shares what the first left
        batches = load(files, FIXED, 5, allowance=allowance)
        for _ in range(3):
            list(batches)
        assert sorted(files.reads) == [1] * kept + [3] * (12 - kept)
    assert allowance.free_bytes == 1


def test_error_in_a_thread_reaches_whoever_takes_the_batch() -> None:
    class Broken(Numbers):
        def __getitem__(self, indices: list[int]) -> Batch:
            raise OSError("no such picture")

    with pytest.raises(OSError, match="no such picture"):
        list(Loader(Broken(), SameSize(SIZES, 4, seed=7), workers=2))


class Timed(Numbers):
    """The same, with a clock that runs only while whoever takes the batches makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.made = 0.0, 0
        self._taker = threading.get_ident()
        self._changed = threading.Condition()

    def __getitem__(self, indices: list[int]) -> Batch:
        self.now += threading.get_ident() == self._taker
        batch = super().__getitem__(indices)
        with self._changed:
            self.made += 1
            self._changed.notify()
        return batch

    def wait_for(self, batches: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.made >= batches, 60)


def test_waiting_is_counted_and_threads_shorten_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def waited(workers: int) -> float:
        source = Timed()
        monkeypatch.setattr("convoy.models.data.batches.time", SimpleNamespace(perf_counter=lambda: source.now))
        slow = Loader(source, SameSize(SIZES, 4, seed=7), workers)
        for taken, _ in enumerate(slow, start=1):
            # Meanwhile the network computes, for as long as threads take to make the next batch.
            assert not workers or source.wait_for(min(taken + 1, len(slow)))
        return slow.waited

    assert waited(0) == len(loader())
    assert waited(2) == 0
