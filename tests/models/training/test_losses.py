"""Losses against their formulas, their limits, and what they are for."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.data.dataset import DataSet
from convoy.models.training.losses import LOSSES, balanced, dice, focal, loss
from convoy.models.training.module import Training
from convoy.models.training.train import describe
from tests.models.conftest import settings

IGNORE = 255
WEIGHTS = torch.tensor([1.0, 0.5, 4.0], dtype=torch.float64)


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, 3, 4, 5) float64 and targets (2, 4, 5), three of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (2, 4, 5), generator=generator)
    targets[0, 0, :2] = targets[1, 3, 4] = IGNORE
    return logits, targets


def probabilities(logits: Tensor) -> NDArray[np.float64]:
    exponents = np.exp(logits.numpy() - logits.numpy().max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_its_formula(gamma: float, weights: Tensor | None) -> None:
    logits, targets = example()
    p = probabilities(logits)
    total = share = 0.0
    for n, y, x in np.ndindex(*targets.shape):
        name = int(targets[n, y, x])
        if name != IGNORE:
            weight = 1.0 if weights is None else float(weights[name])
            total -= weight * (1 - p[n, name, y, x]) ** gamma * np.log(p[n, name, y, x])
            share += weight
    assert float(focal(logits, targets, gamma, IGNORE, weights)) == pytest.approx(total / share, rel=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_dice_loss_is_its_formula(weights: Tensor | None) -> None:
    logits, targets = example()
    p, total, share = probabilities(logits), 0.0, 0.0
    counted = targets.numpy() != IGNORE
    for name in range(3):
        mine, right = p[:, name][counted], (targets.numpy() == name)[counted]
        weight = 1.0 if weights is None else float(weights[name])
        total += weight * (2 * (mine * right).sum() + 1) / ((mine**2).sum() + right.sum() + 1)
        share += weight
    assert float(dice(logits, targets, IGNORE, weights)) == pytest.approx(1 - total / share, rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_without_gamma_is_cross_entropy(weights: Tensor | None) -> None:
    logits, targets = example()
    expected = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE)
    assert float(focal(logits, targets, 0.0, IGNORE, weights)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope(name: str) -> None:
    logits, targets = example()
    measure = loss(name, 2.0, IGNORE, WEIGHTS)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda x: measure(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_influence(name: str) -> None:
    logits, targets = example()
    measure = loss(name, 2.0, IGNORE, WEIGHTS)  # type: ignore[arg-type]
    before = float(measure(logits, targets))
    ignored = (targets == IGNORE)[:, None].expand_as(logits)
    assert float(measure(torch.where(ignored, 50 * torch.rand_like(logits), logits), targets)) == before
    # The negative control: any other pixel has one.
    assert float(measure(torch.where(~ignored, logits.flip(1), logits), targets)) != before


@pytest.mark.parametrize("name", LOSSES)
def test_sure_answers_give_finite_losses_and_gradients(name: str) -> None:
    _, targets = example()
    measure = loss(name, 0.5, IGNORE)  # type: ignore[arg-type]
    right = F.one_hot(targets.where(targets != IGNORE, 0), 3).movedim(-1, 1).float()
    for scale in (1e4, -1e4):
        logits = (scale * right).requires_grad_()
        value = measure(logits, targets)
        value.backward()
        assert logits.grad is not None
        assert value.isfinite()
        assert logits.grad.isfinite().all()
        if scale > 0:
            assert value.item() == pytest.approx(0, abs=1e-6)
        else:
            assert value.item() > 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_classes_without_a_place_are_classified_too(name: str) -> None:
    logits, targets = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 1])
    loss(name, 2.0, -100)(logits, targets).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", [None, WEIGHTS.float()])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_ignored_pixels_is_no_loss(name: str, weights: Tensor | None) -> None:
    logits = (20 * torch.randn(1, 3, 4, 4)).requires_grad_()
    value = loss(name, 2.0, IGNORE, weights)(logits, torch.full((1, 4, 4), IGNORE))  # type: ignore[arg-type]
    value.backward()
    assert logits.grad is not None
    assert value.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_that_of_torch(weights: Tensor | None) -> None:
    logits, targets = example()
    expected = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE)
    assert float(loss("cross-entropy", 0.0, IGNORE, weights)(logits, targets)) == pytest.approx(float(expected))


def test_balanced_weights_are_the_median_count_over_each_classes_own() -> None:
    assert balanced(torch.tensor([100, 50, 25, 0])).tolist() == pytest.approx([0.5, 1.0, 2.0, 1.0])
    assert balanced(torch.tensor([1_000_000, 1_000, 1])).tolist() == pytest.approx([1e-3, 1.0, 10.0])


class Uneven:
    """Four images of 16 pixels: 48 of class 0, 8 of class 1, 4 of class 2 and 4 of none."""

    def __len__(self) -> int:
        return 4

    def size(self, _: int) -> tuple[int, int]:
        return 4, 4

    def __getitem__(self, _: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        mask = np.repeat(np.array([0, 1, 2, IGNORE], np.uint8), [12, 2, 1, 1]).reshape(4, 4)
        return np.zeros((4, 4, 3), np.uint8), mask


@pytest.mark.parametrize("choice", ["none", "balanced"])
def test_weights_of_a_run_are_those_of_its_training_pixels(choice: str) -> None:
    data = DataSet("uneven", "segmentation", "RGB", list("abc"), None, [0.5] * 3, [0.5] * 3, lambda _: Uneven())
    asked = settings("unet", "uneven", class_weights=choice)
    training = Training(*describe(asked, data), data, asked)
    weights = torch.tensor([8 / 48, 1.0, 8 / 4]) if choice == "balanced" else None
    logits, targets = torch.randn(1, 3, 4, 4), torch.from_numpy(Uneven()[0][1])[None].long()
    expected = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE)
    assert float(training.loss(logits, targets)) == pytest.approx(float(expected), rel=1e-5)


def test_rare_class_gains_recall_by_balanced_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(4000, generator=generator) < 0.05).long()
    # Two overlapping clouds: without weights the better bet is the common class.
    points = torch.randn(4000, 2, generator=generator) + 1.2 * targets[:, None]

    def recall(weights: Tensor | None) -> float:
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        measure = loss("cross-entropy", 0.0, -100, weights)
        for _ in range(100):
            optimizer.zero_grad()
            measure(model(points), targets).backward()
            optimizer.step()
        return float((model(points).argmax(dim=1)[targets == 1] == 1).float().mean())

    assert recall(balanced(torch.bincount(targets))) > recall(None) + 0.3
