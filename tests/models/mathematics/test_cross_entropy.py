"""Softmax cross-entropy: its value, its gradient p - y, and that neither is lost to large numbers."""

from collections.abc import Callable
from math import log

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from convoy.models.training.losses import loss
from tests.models.mathematics import definitions

IGNORED = 255
LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [
    loss("cross-entropy", gamma=2.0, ignore=IGNORED),
    loss("focal", gamma=0.0, ignore=IGNORED),  # which is the cross-entropy
]
every_loss = pytest.mark.parametrize("measure", LOSSES, ids=["cross-entropy", "focal, gamma 0"])


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([0, 4, 2, 2, 1, 3])


def gradient(measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    (by_logits,) = torch.autograd.grad(measure(logits, targets), logits)
    return by_logits


def residual(logits: Tensor, targets: Tensor) -> Tensor:
    """p - y of each image, over the number of images."""
    p = torch.exp(logits.detach() - logits.detach().max(dim=1, keepdim=True).values)
    p /= p.sum(dim=1, keepdim=True)
    return (p - torch.eye(logits.shape[1], dtype=p.dtype)[targets]) / len(logits)


@every_loss
def test_value_is_the_mean_surprise(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> None:
    rows = zip(logits.detach().numpy(), targets.tolist(), strict=True)
    expected = np.mean([definitions.cross_entropy(row, truth) for row, truth in rows])
    assert measure(logits, targets).item() == pytest.approx(expected, rel=1e-12)


@every_loss
def test_gradient_is_what_is_answered_less_what_is_right(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> None:
    found = gradient(measure, logits, targets)
    assert_allclose(found, residual(logits, targets), atol=1e-14)
    assert_allclose(found.sum(dim=1), 0, atol=1e-15)
    assert not np.allclose(found, residual(logits, targets.roll(1)))


@every_loss
def test_gradient_is_the_limit_of_differences(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> None:
    step, found = 1e-6, gradient(measure, logits, targets)
    for image, label in np.ndindex(*logits.shape):
        nudge = torch.zeros_like(logits)
        nudge[image, label] = step
        difference = (measure(logits + nudge, targets) - measure(logits - nudge, targets)).item() / (2 * step)
        assert found[image, label].item() == pytest.approx(difference, abs=1e-9)


@every_loss
def test_every_pixel_is_a_classification(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=random)
    truth = torch.randint(4, (2, 3, 5), generator=random)
    listed = measure(maps.movedim(1, -1).reshape(-1, 4), truth.reshape(-1))
    assert measure(maps, truth).item() == pytest.approx(listed.item(), rel=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_logits_are_safe(measure: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    with np.errstate(all="ignore"):
        assert not np.isfinite(definitions.cross_entropy(np.array([1e4, 0.0]), 1))  # the formula as it stands is not
    logits = torch.tensor([[1e4, 0.0, -1e4], [3.0, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 2])
    assert measure(logits, targets).item() == pytest.approx((1e4 + log(2)) / 2, rel=1e-6)
    assert_allclose(gradient(measure, logits, targets), [[0.5, -0.5, 0], [0, 0.25, -0.25]], atol=1e-7)


@every_loss
def test_what_all_logits_share_makes_no_difference(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> None:
    assert measure(logits + 500, targets).item() == pytest.approx(measure(logits, targets).item(), rel=1e-12)


@every_loss
def test_what_is_ignored_has_no_gradient(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> None:
    masked = targets.clone()
    masked[2:4] = IGNORED
    found = gradient(measure, logits, masked)
    kept = [0, 1, 4, 5]
    assert_allclose(found[2:4], 0)
    assert_allclose(found[kept], residual(logits[kept], targets[kept]), atol=1e-14)
