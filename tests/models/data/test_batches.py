"""Batches are the same ones in the same order however many threads make them and however many processes share them."""

import time

import pytest
import torch

from convoy.models.data.batches import WHOLE, Batch, Loader, SameSize, Share

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


def test_error_in_a_thread_reaches_whoever_takes_the_batch() -> None:
    class Broken(Numbers):
        def __getitem__(self, indices: list[int]) -> Batch:
            raise OSError("no such picture")

    with pytest.raises(OSError, match="no such picture"):
        list(Loader(Broken(), SameSize(SIZES, 4, seed=7), workers=2))


def test_waiting_is_counted_and_threads_shorten_it() -> None:
    def waited(workers: int) -> float:
        slow = loader(workers, seconds=0.01)
        for _ in slow:
            time.sleep(0.02)  # what the network takes
        return slow.waited

    alone, ahead = waited(0), waited(2)
    assert alone > 0.02
    assert ahead < alone
