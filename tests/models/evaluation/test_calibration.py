"""The calibration error is that of Guo et al., by hand and beside two other implementations."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from convoy.models.data.dataset import IGNORE
from convoy.models.evaluation.calibration import BINS, CalibrationError, MaskCalibrationError


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
