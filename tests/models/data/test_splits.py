"""The data sets: what is held out stays held out, the same every time, in pixels a person can read."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convoy.models.data.augmentation import jitter
from convoy.models.data.batches import SameSize, loader
from convoy.models.data.builtin import digits, scenes
from convoy.models.data.dataset import IGNORE, SplitName
from convoy.models.data.registry import data_set
from convoy.models.errors import BadTraining
from convoy.service.metadata import InputSpec

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def foreign(split: SplitName, used: list[int]) -> set[int]:
    """Strokes that do not belong to the split, by number or by being the same picture as one of another split."""
    ink, _ = digits.strokes()
    others = {ink[i].tobytes() for other in SPLITS if other != split for i in digits.indices(other)}
    own = set(digits.indices(split).tolist())
    return {i for i in used if i not in own or ink[i].tobytes() in others}


def test_strokes_are_split_into_all_of_1797_without_overlap() -> None:
    parts = [digits.indices(split).tolist() for split in SPLITS]
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert sorted(chain.from_iterable(parts)) == list(range(1797))


def test_no_picture_is_in_two_splits() -> None:
    ink, _ = digits.strokes()
    pictures = [{ink[i].tobytes() for i in digits.indices(split)} for split in SPLITS]
    assert all(not one & other for one, other in combinations(pictures, 2))


def test_each_digit_has_its_share_of_every_split() -> None:
    _, labels = digits.strokes()
    for split in SPLITS:
        counts = np.bincount(labels[digits.indices(split)], minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.mean() + 2


def test_split_is_the_fixed_one() -> None:
    # As it was when it was made: with another one, figures could no longer be compared with those measured before.
    assert digits.indices("test")[:6].tolist() == [8, 9, 17, 18, 30, 36]


def test_digit_is_a_grey_square_with_a_black_border() -> None:
    split = digits.load().split("test")
    for index in range(0, len(split), 7):
        image, label = split[index]
        assert image.shape == (32, 32, 1)
        assert image.dtype == np.uint8
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert border.max() <= 8
        assert image.max() > 200
        assert label in range(10)


def test_digit_looks_like_its_stroke() -> None:
    ink, _ = digits.strokes()
    for stroke in digits.indices("test")[:20]:
        image, _ = digits.draw(stroke, 32)
        small = image[4:28, 4:28, 0].reshape(8, 3, 8, 3).mean(axis=(1, 3)) / 255
        assert np.corrcoef(small.ravel(), ink[stroke].ravel())[0, 1] > 0.95


def test_rendered_digit_turns_counter_clockwise() -> None:
    ink = np.zeros((8, 8), np.float32)
    ink[1, 3:5] = 1  # above the middle
    turned = digits.render(ink, 24, scale=3, contrast=1, degrees=90)
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    assert 10 <= row <= 13
    assert column < 8


def test_scenes_use_strokes_of_their_own_split_only() -> None:
    for split in SPLITS:
        used = [stroke for index in range(40) for stroke in scenes.draw(split, index, scenes.SIZES[0]).strokes]
        assert len(used) > 100
        assert foreign(split, used) == set()


def test_a_foreign_stroke_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = digits.indices
    monkeypatch.setattr(digits, "indices", lambda split: real("test" if split == "train" else split))
    used = scenes.draw("train", 0, scenes.SIZES[0]).strokes
    monkeypatch.undo()
    assert foreign("train", used) == set(used)


def test_scene_is_the_same_every_time_and_differs_by_index_and_split() -> None:
    size = (64, 80)
    first, again = scenes.draw("test", 5, size), scenes.draw("test", 5, size)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, scenes.draw("test", 6, size).image)
    assert not np.array_equal(first.image, scenes.draw("train", 5, size).image)


@pytest.mark.parametrize("split", SPLITS)
def test_scene_holds_several_digits_whose_classes_the_mask_names(split: SplitName) -> None:
    _, labels = digits.strokes()
    for index in range(30):
        size = scenes.SIZES[index % len(scenes.SIZES)]
        scene = scenes.draw(split, index, size)
        assert scene.image.shape == (*size, 3)
        assert scene.mask.shape == size
        assert len(scene.strokes) >= 2
        assert set(np.unique(scene.mask)) == {0, *(1 + labels[scene.strokes])}


def test_digits_of_a_scene_stand_out_from_the_background() -> None:
    contrasts = []
    for index in range(30):
        scene = scenes.draw("test", index, (96, 96))
        grey = scene.image.mean(axis=2)
        contrasts.append(abs(grey[scene.mask > 0].mean() - grey[scene.mask == 0].mean()))
    assert min(contrasts) > 40


def test_scenes_have_several_sizes_known_beforehand() -> None:
    split = scenes.load().split("validation")
    for index in range(12):
        image, mask = split[index]
        assert image.shape[:2] == split.size(index)
        assert isinstance(mask, np.ndarray)
    assert len({split.size(index) for index in range(len(split))}) >= 4


def test_palette_has_a_colour_for_every_label_and_all_differ() -> None:
    data = scenes.load()
    assert data.labels == ["background", *"0123456789"]
    assert data.palette is not None
    assert len(set(data.palette)) == len(data.labels)


def test_batches_hold_images_of_one_size_and_every_image_once() -> None:
    sizes = [(8, 8), (8, 16), (8, 8), (8, 8), (8, 16)] * 5
    batches = list(SameSize(sizes, 4, seed=1))
    assert len(batches) == len(SameSize(sizes, 4, seed=1))
    assert sorted(chain.from_iterable(batches)) == list(range(25))
    assert all(len({sizes[index] for index in batch}) == 1 for batch in batches)


def test_batches_are_shuffled_by_seed_and_epoch() -> None:
    def order(seed: int | None, epoch: int) -> list[list[int]]:
        sampler = SameSize([(8, 8)] * 40, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(None, 0) == order(None, 1) == [list(range(start, start + 8)) for start in range(0, 40, 8)]


def test_large_images_are_looked_at_in_small_batches() -> None:
    sizes = [(2048, 1024)] * 5 + [(8000, 6000)] * 2 + [(64, 64)] * 20
    assert [len(batch) for batch in SameSize(sizes, 16, seed=None)] == [2, 2, 1, 1, 1, 16, 4]
    assert len(SameSize(sizes, 16, seed=None)) == 7
    # Trained with, there are as many as were asked for.
    assert sorted(len(batch) for batch in SameSize(sizes, 16, seed=1)) == [2, 4, 5, 16]


class OneScene:
    """A white scene whose sides fit no multiple of 16."""

    def __len__(self) -> int:
        return 1

    def size(self, _: int) -> tuple[int, int]:
        return 10, 20

    def __getitem__(self, _: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return np.full((10, 20, 3), 255, np.uint8), np.ones((10, 20), np.uint8)


def test_image_is_padded_as_serving_pads_it_and_padding_counts_for_nothing() -> None:
    (batch,) = loader(OneScene(), InputSpec(colour="RGB", multiple=16, fit="pad"), 4)
    assert batch.images.shape == (1, 16, 32, 3)
    assert batch.images[0, :10, :20].min() == 255
    assert batch.images.sum() == 10 * 20 * 3 * 255
    assert (batch.targets == 1).sum() == 200
    assert (batch.targets == IGNORE).sum() == 16 * 32 - 200


class Places:
    """Images of several sizes whose red and mask are both the place in the image."""

    def __len__(self) -> int:
        return 6

    def size(self, index: int) -> tuple[int, int]:
        return 9 + index, 14 - index

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        height, width = self.size(index)
        places = np.arange(height * width, dtype=np.uint8).reshape(height, width)
        return np.repeat(places[..., None], 3, axis=2), places


def crops(epoch: int, side: int = 8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """All of `Places` as one batch."""
    batches = loader(Places(), InputSpec(colour="RGB", multiple=4, fit="pad"), 6, seed, crop=side)
    batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    (batch,) = batches
    return batch.images, batch.targets


def test_crops_of_images_of_several_sizes_are_one_batch_with_their_masks() -> None:
    images, masks = crops(0)
    assert images.shape == (6, 8, 8, 3)
    assert torch.equal(images[..., 0], masks)


def test_crops_change_with_the_epoch_and_the_seed_alone() -> None:
    assert torch.equal(crops(0)[0], crops(0)[0])
    order = [
        sorted(image.sum().item() for image in crops(epoch, seed=seed)[0]) for epoch, seed in ((0, 1), (1, 1), (0, 2))
    ]
    assert order[0] != order[1]
    assert order[0] != order[2]


def test_what_a_crop_does_not_find_in_a_small_image_counts_for_nothing() -> None:
    images, masks = crops(0, side=12)
    assert images.shape == (6, 12, 12, 3)
    assert sorted((masks == IGNORE).flatten(1).sum(dim=1).tolist()) == sorted(
        12 * 12 - min(12, 9 + index) * min(12, 14 - index) for index in range(6)
    )


def test_jitter_keeps_the_digit_and_its_surroundings_black() -> None:
    torch.manual_seed(0)
    image = torch.from_numpy(digits.draw(0, 32)[0]).permute(2, 0, 1)[None].float() / 255
    changed = jitter(image.expand(64, -1, -1, -1), degrees=10, scale=0.1, shift=0.06)
    assert changed.shape == (64, 1, 32, 32)
    assert changed[..., 0, :].max() < 0.3
    assert len({picture.sum().item() for picture in changed}) == 64
    assert (changed.sum(dim=(1, 2, 3)) / image.sum() - 1).abs().max() < 0.35


def test_jitter_by_nothing_changes_nothing() -> None:
    image = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(jitter(image, 0, 0, 0), image, atol=1e-5, rtol=0)


def test_unknown_data_set_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BadTraining, match=r"'digit', want one of: digits, "):
        data_set("digit")
