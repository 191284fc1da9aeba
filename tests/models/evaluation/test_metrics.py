"""The boundary F1 score, by hand and beside a slow one that compares every pair of pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, jaccard_score, precision_recall_fscore_support
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from convoy.models.data.dataset import IGNORE
from convoy.models.evaluation.metrics import (
    BINS,
    BoundaryF1,
    CalibrationError,
    MaskCalibrationError,
    class_scores,
    image_scores,
    outline,
)


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


def error(probabilities: Tensor, targets: Tensor) -> float:
    metric = CalibrationError()
    for part in range(0, len(targets), 7):  # batch by batch, the last one smaller
        metric.update(probabilities[part : part + 7], targets[part : part + 7])
    return float(metric.compute())


def sure(confidences: list[float]) -> Tensor:
    """Two classes, the first one answered."""
    return torch.tensor([[confidence, 1 - confidence] for confidence in confidences])


@pytest.fixture
def random() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(500, 4, generator=generator).softmax(1), torch.randint(4, (500,), generator=generator)


def test_gap_between_confidence_and_share_of_right_ones_is_weighed_by_the_images_of_a_bin() -> None:
    # Bin (9/15, 10/15]: 0.62 and 0.66, one right, so |0.5 - 0.64|; bin (13/15, 14/15]: 0.9, right, so 0.1.
    assert error(sure([0.62, 0.66, 0.9]), torch.tensor([0, 1, 0])) == pytest.approx((2 * 0.14 + 0.1) / 3)


def test_classifier_that_is_right_as_often_as_it_says_has_no_error() -> None:
    assert error(sure([0.75] * 4), torch.tensor([0, 0, 0, 1])) == pytest.approx(0)


def test_classifier_that_is_sure_and_wrong_has_the_largest_error() -> None:
    assert error(sure([1.0] * 4), torch.ones(4, dtype=torch.int64)) == 1


def test_torchmetrics_says_the_same_where_no_confidence_is_on_an_edge(random: tuple[Tensor, Tensor]) -> None:
    other = MulticlassCalibrationError(4, n_bins=BINS, norm="l1")
    assert error(*random) == pytest.approx(float(other(*random)), abs=1e-6)
    assert error(*random) > 0.01


def test_scikit_learn_says_the_same(random: tuple[Tensor, Tensor]) -> None:
    confidence, answered = random[0].max(dim=1)
    right = (answered == random[1]).numpy()
    shares, means = calibration_curve(right, confidence.numpy(), n_bins=BINS)
    filled = np.histogram(confidence.numpy(), bins=np.linspace(0, 1, BINS + 1))[0]
    expected = (np.abs(shares - means) * filled[filled > 0]).sum() / len(right)
    assert error(*random) == pytest.approx(expected, abs=1e-6)


def test_confidence_that_rounds_to_one_is_in_the_bin_of_those_a_little_below() -> None:
    # One sure and right, one almost as sure and wrong: one bin, half of which is right.
    assert error(sure([1.0, 0.99]), torch.tensor([0, 1])) == pytest.approx(0.995 - 0.5)


def mask_error(masks: Tensor, confidences: Tensor, targets: Tensor) -> float:
    metric = MaskCalibrationError(IGNORE)
    for part in range(len(masks)):
        metric.update(masks[part : part + 1], confidences[part : part + 1], targets[part : part + 1])
    return float(metric.compute())


def test_pixels_are_calibrated_as_images_are() -> None:
    generator = torch.Generator().manual_seed(0)
    masks, targets = (torch.randint(3, (4, 9, 11), generator=generator) for _ in range(2))
    confidences = torch.randint(130, 256, (4, 9, 11), generator=generator).to(torch.uint8)
    confidences[confidences % 17 == 0] -= 1  # those on the edges of bins, where rounding decides
    probabilities = sure((confidences.flatten() / 255).tolist())
    wrong = (masks != targets).long().flatten()  # of two classes, the first one answered
    found = mask_error(masks.to(torch.uint8), confidences, targets)
    assert found == pytest.approx(error(probabilities, wrong), abs=1e-6)
    assert found > 0.1


def test_pixels_of_no_class_have_no_part_in_the_calibration() -> None:
    masks, confidences = torch.zeros(1, 2, 2, dtype=torch.uint8), torch.full((1, 2, 2), 255, dtype=torch.uint8)
    targets = torch.tensor([[[0, 0], [1, IGNORE]]])
    assert mask_error(masks, confidences, targets) == pytest.approx(1 / 3)
    assert mask_error(masks, confidences, torch.full((1, 2, 2), IGNORE)) == 0


def test_mask_that_is_right_as_often_as_it_says_has_no_error() -> None:
    confidences = torch.full((1, 1, 5), 204, dtype=torch.uint8)
    assert mask_error(torch.zeros(1, 1, 5, dtype=torch.uint8), confidences, torch.tensor([[[0, 0, 0, 0, 1]]])) == 0


def test_scores_of_a_class_come_from_its_row_and_its_column() -> None:
    cat, dog = class_scores(np.array([[3, 1], [2, 4]]), ["cat", "dog"])
    assert (cat.label, cat.support, cat.precision, cat.recall) == ("cat", 4, 3 / 5, 3 / 4)
    assert cat.f1 == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert cat.iou == pytest.approx(3 / 6)
    assert (dog.support, dog.precision, dog.recall) == (6, 4 / 5, 4 / 6)


def test_scikit_learn_has_the_same_scores_per_class() -> None:
    random = np.random.default_rng(0)
    true, answered = random.integers(0, 6, (2, 300))
    found = class_scores(confusion_matrix(true, answered).astype(np.int64), [str(number) for number in range(6)])
    expected = precision_recall_fscore_support(true, answered)
    rows = [[row.precision, row.recall, row.f1, row.support] for row in found]
    np.testing.assert_allclose(np.array(rows).T, np.array(expected))
    np.testing.assert_allclose([row.iou for row in found], jaccard_score(true, answered, average=None))


def test_what_there_is_nothing_to_measure_on_has_no_score() -> None:
    never_answered, never_there, neither = class_scores(np.array([[0, 2, 0], [0, 0, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert (never_answered.precision, never_answered.recall, never_answered.iou) == (None, 0, 0)
    assert (never_there.precision, never_there.recall) == (0, None)
    assert (neither.precision, neither.recall, neither.f1, neither.iou) == (None, None, None, None)
