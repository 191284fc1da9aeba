"""Augmentation: a mask moves with its image, the same draws come again, and what is off changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from convoy.models.data.augmentation import augmented, check, mixup, window, zoomed
from convoy.models.data.batches import loader
from convoy.models.data.contact_sheet import SIDE, Tile, sheet
from convoy.models.data.dataset import IGNORE
from convoy.models.data.registry import data_set
from convoy.models.settings import Augmentation
from convoy.models.training import losses
from convoy.models.training.run import RunFolder
from convoy.models.training.train import train
from convoy.service import cli
from convoy.service.metadata import InputSpec, default_palette
from tests.models.conftest import settings
from tests.models.training.test_train import same

EVERYTHING = Augmentation(flip="both", random_crop=0.5, scale=(0.8, 1.25), rotate=30, colour=0.3, erase=0.5)


def blocks(height: int = 40, width: int = 56) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Four rectangles of far apart greys, and a mask that says which is which."""
    mask = np.zeros((height, width), np.uint8)
    top, left = height // 4, width // 4
    mask[:top, left:], mask[top:, :left], mask[top:, left:] = 1, 2, 3
    return np.repeat((60 * mask + 20)[..., None], 3, axis=2).astype(np.uint8), mask


def drawn(how: Augmentation, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    image, mask = blocks()
    changed, moved = augmented(random, *zoomed(image, mask, window(random, *mask.shape, how.random_crop)), how)
    assert moved is not None
    return changed, moved


def agreement(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """The share of pixels whose grey is that of their class, of those that have one."""
    return float((np.rint((image[..., 0] - 20.0) / 60) == mask)[mask != IGNORE].mean())


@pytest.mark.parametrize(
    "how",
    [
        Augmentation(flip="both"),
        Augmentation(random_crop=0.3),
        Augmentation(scale=(0.5, 2.0)),
        Augmentation(rotate=180),
        structs.replace(EVERYTHING, colour=0.0),
    ],
)
def test_mask_moves_with_its_image(how: Augmentation) -> None:
    results = [drawn(how, seed) for seed in range(20)]
    # At the edges between rectangles the image is blended, and the mask is not.
    assert np.mean([agreement(image, mask) for image, mask in results]) > 0.95
    assert any(not np.array_equal(mask, blocks()[1]) for _, mask in results)
    # The negative control: with the mask of another draw they do not agree.
    assert np.mean([agreement(results[i][0], results[i - 1][1]) for i in range(20)]) < 0.85


def test_every_mask_pixel_is_a_class_that_was_there_or_none() -> None:
    for seed in range(10):
        _, mask = drawn(EVERYTHING, seed)
        assert set(np.unique(mask)) <= {0, 1, 2, 3, IGNORE}


def test_what_comes_in_from_outside_counts_for_nothing() -> None:
    image, mask = drawn(Augmentation(scale=(0.5, 0.5)))
    inside = mask[10:30, 14:42]
    assert (inside != IGNORE).all()
    assert (mask != IGNORE).sum() == inside.size
    assert image[0, 0, 0] == image[12, 16, 0]  # and repeats the border in the image


def test_turn_is_counter_clockwise_on_both_sides_of_a_square_alike() -> None:
    image = np.zeros((31, 61, 1), np.uint8)
    image[14:17, 50:60] = 255  # to the right of the middle
    how = Augmentation(rotate=90)
    random = next(np.random.default_rng(seed) for seed in range(100) if _degrees(np.random.default_rng(seed), how) > 80)
    turned, _ = augmented(random, np.pad(image, ((15, 15), (0, 0), (0, 0))), None, how)
    row, column = np.unravel_index(turned[..., 0].argmax(), turned.shape[:2])
    assert row < 12
    assert 24 <= column <= 36


def _degrees(random: np.random.Generator, how: Augmentation) -> float:
    random.random(2)
    random.uniform(0, 1)
    return float(random.uniform(-how.rotate, how.rotate))


def test_what_is_off_changes_nothing() -> None:
    image, mask = drawn(Augmentation())
    assert np.array_equal(image, blocks()[0])
    assert np.array_equal(mask, blocks()[1])
    assert not Augmentation(mixup=0.2, label_smoothing=0.1).changes_images


def test_one_change_more_leaves_the_draws_of_the_others() -> None:
    flips = [drawn(Augmentation(flip="both"), seed)[1] for seed in range(8)]
    with_colour = [drawn(Augmentation(flip="both", colour=0.5), seed)[1] for seed in range(8)]
    assert all(np.array_equal(one, other) for one, other in zip(flips, with_colour, strict=True))
    assert len({mask.tobytes() for mask in flips}) == 4


@pytest.mark.parametrize(("flip", "ways"), [("none", 1), ("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_flip_is_to_the_named_sides_only(flip: str, ways: int) -> None:
    assert len({drawn(Augmentation(flip=flip), seed)[0].tobytes() for seed in range(30)}) == ways  # type: ignore[arg-type]


def test_colour_changes_pixels_within_bounds_and_no_mask() -> None:
    image, mask = drawn(Augmentation(colour=0.3), seed=1)
    assert np.array_equal(mask, blocks()[1])
    assert not np.array_equal(image, blocks()[0])
    assert image.dtype == np.uint8
    grey, _ = augmented(np.random.default_rng(0), blocks()[0][..., :1], None, Augmentation(colour=0.3))
    assert grey.shape == (40, 56, 1)


def test_erased_rectangle_is_noise_and_counts_for_nothing() -> None:
    erased = [drawn(Augmentation(erase=0.5), seed) for seed in range(60)]
    shares = [(mask == IGNORE).mean() for _, mask in erased]
    assert 15 <= sum(share > 0 for share in shares) <= 45
    assert all(share == 0 or 0.01 < share < 0.4 for share in shares)
    image, mask = next((image, mask) for image, mask in erased if (mask == IGNORE).any())
    assert image[mask == IGNORE].std() > 50
    assert np.array_equal(image[mask != IGNORE], blocks()[0][mask != IGNORE])


def test_window_has_at_least_its_share_and_the_proportions_of_the_image() -> None:
    random = np.random.default_rng(0)
    windows = [window(random, 100, 200, 0.25) for _ in range(200)]
    assert all(0.24 < seen.height * seen.width / 20000 <= 1 for seen in windows)
    assert all(abs(seen.width - 2 * seen.height) <= 1 for seen in windows)
    assert all(seen.top + seen.height <= 100 and seen.left + seen.width <= 200 for seen in windows)
    assert len({seen.left for seen in windows}) > 50


class Blocks:
    """Sixteen times the same image, with its mask or with a class."""

    def __init__(self, masks: bool) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return 16

    def size(self, _: int) -> tuple[int, int]:
        return 40, 56

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | int]:
        image, mask = blocks()
        return image, mask if self.masks else index


def first_batch(split: Blocks, spec: InputSpec, epoch: int = 0, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    batches = loader(split, spec, 16, seed, augmentation=EVERYTHING)
    batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    (batch,) = batches
    return batch.images, batch.targets


@pytest.mark.parametrize("masks", [True, False])
def test_batches_are_the_same_by_seed_and_epoch_and_no_two_images_alike(masks: bool) -> None:
    spec = InputSpec(colour="RGB", multiple=16, fit="pad") if masks else InputSpec(colour="RGB", height=32, width=32)
    images, targets = first_batch(Blocks(masks), spec)
    again, targets_again = first_batch(Blocks(masks), spec)
    assert torch.equal(images, again)
    assert torch.equal(targets, targets_again)
    assert not torch.equal(images, first_batch(Blocks(masks), spec, epoch=1)[0])
    assert not torch.equal(images, first_batch(Blocks(masks), spec, seed=4)[0])
    assert len({image.numpy().tobytes() for image in images}) == 16
    if masks:
        assert (targets[:, 40:] == IGNORE).all()  # the padding stays where serving has it
        assert images[:, 40:].sum() == 0
    else:
        assert sorted(targets.tolist()) == list(range(16))


def test_validation_sees_images_as_they_are() -> None:
    (batch,) = loader(Blocks(masks=True), InputSpec(colour="RGB", multiple=8, fit="pad"), 16)
    assert all(np.array_equal(image, blocks()[0]) for image in batch.images.numpy())


def test_mixup_blends_images_and_says_which() -> None:
    torch.manual_seed(0)
    images, targets = torch.eye(4).reshape(4, 1, 2, 2), torch.arange(4)
    mixed = mixup(images, targets, 0.4)
    assert 0 < mixed.share < 1
    for image, target, partner in zip(mixed.images.flatten(1), mixed.targets, mixed.partners, strict=True):
        assert image[target] == pytest.approx(mixed.share)
        assert image[partner] == pytest.approx(1 - mixed.share)
    assert mixup(images, targets, 0).images is images


def test_mixup_draws_from_the_beta_distribution() -> None:
    torch.manual_seed(0)
    nothing = torch.zeros(2, 1)
    shares = np.array([mixup(nothing, torch.arange(2), 0.2).share for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(0.25 / 1.4, abs=0.02)  # of Beta(a, a): 1 / 4 (2 a + 1)


@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_is_that_of_torch(weighted: bool) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 5), torch.randint(5, (8,))
    weights = torch.rand(5) + 0.5 if weighted else None
    ours = losses.loss("cross-entropy", 2.0, -100, weights, smoothing=0.1)(logits, targets)
    torch.testing.assert_close(ours, F.cross_entropy(logits, targets, weights, label_smoothing=0.1))
    assert not torch.isclose(ours, losses.loss("cross-entropy", 2.0, -100, weights)(logits, targets))


STRONG = Augmentation(flip="horizontal", rotate=20, erase=0.5, mixup=0.4, label_smoothing=0.1)


def test_augmented_run_is_the_same_again(tmp_path: Path) -> None:
    for name, how in (("one", STRONG), ("two", STRONG), ("plain", Augmentation())):
        train(settings(epochs=1, augmentation=how), tmp_path / name)
    one, two, plain = (tmp_path / name / "last.ckpt" for name in ("one", "two", "plain"))
    assert same(one, two)
    assert not same(one, plain)


def test_options_reach_the_run_and_a_resumed_one_keeps_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    command = ["train", "lenet5", "--data", "tiny-digits"]
    told = [
        "--flip",
        "both",
        "--random-crop",
        "0.6",
        "--scale",
        "0.8:1.2",
        "--rotate",
        "5",
        "--colour",
        "0.1",
        "--erase",
        "0.2",
        "--mixup",
        "0.3",
    ]
    run = [*command, *told, "--mixup", "0.3", "--label-smoothing", "0.05", "--epochs", "1", "--output", str(tmp_path)]
    assert cli.run(run) == 0
    wanted = Augmentation(
        flip="both",
        random_crop=0.6,
        scale=(0.8, 1.2),
        rotate=5,
        colour=0.1,
        erase=0.2,
        mixup=0.3,
        label_smoothing=0.05,
    )
    assert folder.read().settings.recipe.augmentation == wanted  # type: ignore[union-attr]
    assert cli.run([*command, "--epochs", "2", "--resume", str(folder.last)]) == 0
    assert folder.read().settings.recipe.augmentation == wanted  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet", "--data", "tiny-scenes", "--mixup", "0.2"], "mixup 0.2: digit-scenes is data for segmentation"),
        (["unet", "--data", "tiny-scenes", "--label-smoothing", "0.1"], "label smoothing 0.1: "),
        (["conv1d", "--data", "gait", "--rotate", "5"], "gait has no images, want no augmentation of images"),
        (["conv1d", "--data", "gait", "--preview", "x.png"], "gait has no images to show"),
        (["lenet5", "--data", "tiny-digits", "--label-smoothing", "0.1", "--loss", "focal"], "want cross-entropy"),
        (["lenet5", "--data", "tiny-digits", "--scale", "1.2:0.8"], "--scale '1.2:0.8', want LEAST:LARGEST such as"),
        (["lenet5", "--data", "tiny-digits", "--scale", "0.01:1"], "each 0.1 to 10"),
        (["lenet5", "--data", "tiny-digits", "--preview", "none/x.png"], "there is no folder 'none'"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err.replace("tiny-scenes", "digit-scenes")
    assert err.count("\n") == 1


def test_tensors_may_be_mixed_up() -> None:
    check(Augmentation(mixup=0.2, label_smoothing=0.1), data_set("gait"), "cross-entropy")


def test_preview_draws_what_would_be_trained_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = ["train", "unet", "--data", "tiny-scenes", "--preview"]
    assert cli.run([*plain, "plain.png"]) == 0
    assert "16 augmented training images: plain.png" in capsys.readouterr().out
    assert cli.run([*plain, "turned.png", "--rotate", "45"]) == 0
    assert cli.run([*plain, "again.png", "--rotate", "45"]) == 0
    pictures = [np.asarray(Image.open(f"{name}.png")) for name in ("plain", "turned", "again")]
    assert np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
    assert not (tmp_path / "runs").exists()


def test_sheet_lays_the_mask_over_the_image_in_its_colours() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    mask = np.array([[0, 1, 1, 1, 1, 1, 1, IGNORE]] * 4, np.uint8)
    tile = Tile(image, "a very long caption " * 9, mask)
    drawn_ = np.asarray(sheet([tile], [(200, 0, 0), (0, 200, 0)], ["ground", "tree"]))
    middle = drawn_[8 + SIDE // 2, 8 + SIDE :]
    assert middle[8].tolist() == [110, 0, 0]
    assert middle[SIDE // 2].tolist() == [0, 110, 0]
    assert middle[SIDE - 8].tolist() == [140, 140, 140]


def test_classes_without_a_palette_have_colours_that_differ() -> None:
    colours = default_palette(256)
    assert len(set(colours)) == 256
    assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
