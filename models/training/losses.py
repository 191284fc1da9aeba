"""Training losses: cross-entropy, focal and Dice loss, with weights for rare classes."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.settings import Loss

LOSSES: tuple[Loss, ...] = get_args(Loss)
SumOverProcesses = Callable[[Tensor], Tensor]

SMOOTHING = 1.0  # pixels, added to both parts of the Dice ratio: a class absent from a batch has no gradient


def unchanged(sums: Tensor) -> Tensor:
    """Returns the sums over the batch unchanged, for a process that has the whole batch."""
    return sums


def loss(
    name: Loss,
    gamma: float,
    ignore: int,
    weights: Tensor | None = None,
    everywhere: SumOverProcesses = unchanged,
    smoothing: float = 0.0,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the loss of that name, from logits (N, classes, ...) float and targets (N, ...) int64 to a scalar.

    gamma       of the focal loss, 0 or more; 0 makes it the cross-entropy
    ignore      the target value that does not count
    weights     (classes,), the weight of each class; the loss is a weighted mean, so their scale does not matter
    everywhere  sums over the parts of a batch in several processes, so that each process returns the loss of the
                whole batch
    smoothing   label smoothing of the cross-entropy: share of the target that is uniform over the classes, 0..1
    """
    losses: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
        "cross-entropy": lambda logits, targets: cross_entropy(logits, targets, ignore, weights, everywhere, smoothing),
        "focal": lambda logits, targets: focal(logits, targets, gamma, ignore, weights, everywhere),
        "dice": lambda logits, targets: dice(logits, targets, ignore, weights, everywhere),
        "cross-entropy+dice": lambda logits, targets: (
            cross_entropy(logits, targets, ignore, weights, everywhere)
            + dice(logits, targets, ignore, weights, everywhere)
        ),
    }
    return losses[name]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignore: int,
    weights: Tensor | None = None,
    everywhere: SumOverProcesses = unchanged,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean of -log p, p the probability of the true class. Shapes are those of `loss`.

    With `smoothing` it is (1 - smoothing) times that, plus smoothing times the mean of -log p over all classes (label
    smoothing, Szegedy et al. 2015, arXiv 1512.00567, section 7).
    If every target is ignored the loss is 0, unlike torch's own mean, 0 / 0.
    """
    total = F.cross_entropy(logits, targets, weights, ignore_index=ignore, reduction="sum", label_smoothing=smoothing)
    return _mean(total, _shares(logits, targets, ignore, weights), everywhere)


def focal(
    logits: Tensor,
    targets: Tensor,
    gamma: float,
    ignore: int,
    weights: Tensor | None = None,
    everywhere: SumOverProcesses = unchanged,
) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of the true class (Lin et al., arXiv 1708.02002, section 3).

    Easy examples count less. Shapes are those of `loss`. If every target is ignored the loss is 0.
    """
    right = F.log_softmax(logits, dim=1).gather(1, targets.where(targets != ignore, 0)[:, None])[:, 0]
    shares = _shares(logits, targets, ignore, weights)
    # 1 - p may round to 0, and a power of 0 has no finite gradient.
    hardness = (1 - right.exp()).clamp_min(torch.finfo(logits.dtype).tiny) ** gamma if gamma > 0 else 1.0
    return _mean(-(shares * hardness * right).sum(), shares, everywhere)


def dice(
    logits: Tensor,
    targets: Tensor,
    ignore: int,
    weights: Tensor | None = None,
    everywhere: SumOverProcesses = unchanged,
) -> Tensor:
    """1 - the mean over classes of 2 sum(p g) / (sum(p^2) + sum(g)), g 1 for pixels of the class and 0 elsewhere
    (Milletari et al., arXiv 1606.04797, section 3, for several classes); sums are over the pixels of the batch.

    Shapes are those of `loss`; 0 is perfect, 1 the worst.
    """
    classes = logits.shape[1]
    counted = (targets != ignore)[:, None]
    probabilities = F.softmax(logits, dim=1) * counted
    right = F.one_hot(targets.where(targets != ignore, 0), classes).movedim(-1, 1).to(logits.dtype) * counted
    axes = [axis for axis in range(logits.dim()) if axis != 1]
    overlap = (probabilities * right).sum(axes)
    whole = (probabilities**2).sum(axes) + right.sum(axes)
    sums = everywhere(torch.stack([overlap, whole]))
    ratios = (2 * sums[0] + SMOOTHING) / (sums[1] + SMOOTHING)
    share = torch.ones_like(ratios) if weights is None else weights.to(logits.dtype)
    return 1 - (ratios * share).sum() / share.sum()


def balanced(counts: Tensor) -> Tensor:
    """Returns weights (classes,) from class counts, (classes,) int: the median count divided by the class's count, at
    most 10, and 1 for an absent class (median frequency balancing, Eigen and Fergus, arXiv 1411.4734, section 6.3.2,
    here with counts over the whole split)."""
    present = counts > 0
    median = counts[present].double().median()
    return torch.where(present, (median / counts.clamp_min(1)).clamp_max(10.0), 1.0).float()


def _shares(logits: Tensor, targets: Tensor, ignore: int, weights: Tensor | None) -> Tensor:
    counted = targets != ignore
    if weights is None:
        return counted.to(logits.dtype)
    return weights.to(logits.dtype)[targets.where(counted, 0)] * counted


def _mean(total: Tensor, shares: Tensor, everywhere: SumOverProcesses) -> Tensor:
    sums = everywhere(torch.stack([total, shares.sum()]))
    return sums[0] / sums[1].where(sums[1] > 0, 1.0)
