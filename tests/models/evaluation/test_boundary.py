"""The boundary F1 score, by hand and beside a slow one that compares every pair of pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convoy.models.data.dataset import IGNORE
from convoy.models.evaluation.boundary import BoundaryF1, image_scores, outline


def square(side: int, top: int, left: int, size: int) -> NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


def scores(mask: NDArray[np.uint8], target: NDArray[np.uint8]) -> dict[int, float]:
    return image_scores(mask, target, target != IGNORE)


def slow(mask: NDArray[np.uint8], target: NDArray[np.uint8], tolerance: float) -> dict[int, float]:
    """The same from the definition, pixel by pixel, where every pixel has a class."""

    def points(image: NDArray[np.uint8], number: int) -> list[tuple[int, int]]:
        rows, columns = image.shape
        neighbours = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return [
            (row, column)
            for row in range(rows)
            for column in range(columns)
            if image[row, column] == number
            and any(
                0 <= row + down < rows and 0 <= column + right < columns and image[row + down, column + right] != number
                for down, right in neighbours
            )
        ]

    def near(some: list[Any], others: list[Any]) -> float:
        return float(np.mean([min(math.dist(one, other) for other in others) <= tolerance for one in some]))

    found = {}
    for number in np.union1d(mask, target):
        answered, true = points(mask, number), points(target, number)
        if answered and true:
            precision, recall = near(answered, true), near(true, answered)
            found[int(number)] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        elif answered or true:
            found[int(number)] = 0.0
    return found


def test_outline_is_where_four_neighbours_differ_and_not_at_the_edge_of_the_image() -> None:
    mask = np.array([[0, 0, 1], [0, 0, 1]], np.uint8)
    assert outline(mask, np.full(mask.shape, True)).tolist() == [[False, True, True]] * 2


def test_outline_within_the_tolerance_is_right_and_beyond_it_is_wrong() -> None:
    true = square(100, 30, 30, 40)  # a diagonal of 141 pixels: 0.75 % is 1.06, so 2
    assert scores(square(100, 32, 30, 40), true) == {0: 1.0, 1: 1.0}
    shifted = scores(square(100, 33, 30, 40), true)[1]
    assert 0.5 < shifted < 0.8  # the two sides that moved along themselves are still right


def test_below_a_pixel_the_tolerance_is_one_pixel() -> None:
    assert scores(square(20, 6, 5, 10), square(20, 5, 5, 10))[1] == 1
    assert scores(square(20, 7, 5, 10), square(20, 5, 5, 10))[1] < 1


def test_class_without_an_outline_on_one_side_scores_nothing() -> None:
    nothing = np.zeros((20, 20), np.uint8)
    assert scores(nothing, square(20, 5, 5, 10)) == {0: 0.0, 1: 0.0}
    assert scores(nothing, nothing) == {}


@pytest.mark.parametrize("seed", range(4))
def test_definition_gives_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    target = np.kron(random.integers(0, 3, (6, 5)), np.ones((6, 8), int)).astype(np.uint8)
    mask = np.roll(target, random.integers(-2, 3, 2), (0, 1))
    mask[random.random(mask.shape) < 0.02] = 1
    expected = slow(mask, target, math.ceil(0.0075 * math.hypot(*target.shape)))
    assert scores(mask, target) == pytest.approx(expected)
    assert 0 < min(expected.values()) < 1


def test_pixels_of_no_class_have_no_outline_and_make_none() -> None:
    target = square(20, 5, 5, 10)
    target[10:] = IGNORE
    mask = square(20, 5, 5, 10)
    mask[12:] = 1  # wrong, where nobody counts
    assert scores(mask, target) == {0: 1.0, 1: 1.0}


def test_padding_does_not_widen_the_tolerance() -> None:
    target, mask = square(20, 5, 5, 10), square(20, 7, 5, 10)
    padded = np.full((400, 400), IGNORE, np.uint8)
    padded[:20, :20] = target
    answered = np.zeros((400, 400), np.uint8)
    answered[:20, :20] = mask
    assert scores(answered, padded) == scores(mask, target)


def test_score_is_the_mean_over_images_of_the_mean_over_their_classes() -> None:
    metric = BoundaryF1(3, IGNORE)
    targets = np.stack([square(20, 5, 5, 10), square(20, 5, 5, 10), np.zeros((20, 20), np.uint8)])
    masks = np.stack([square(20, 5, 5, 10), np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)])
    for one in range(3):
        metric.update(torch.from_numpy(masks[one : one + 1]), torch.from_numpy(targets[one : one + 1]).long())
    assert float(metric.compute()) == 0.5  # 1 and 0; the third has no outline
    assert metric.per_class() == [0.5, 0.5, None]


def test_images_without_any_outline_are_perfect() -> None:
    metric = BoundaryF1(2, IGNORE)
    metric.update(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    assert float(metric.compute()) == 1
