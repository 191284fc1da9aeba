"""Evidence for a class in an image: its target, which is the class or the selected pixels; and two kinds of maps.

Occlusion maps: the drop in confidence when a part of the image is covered (Zeiler and Fergus, arXiv 1311.2901,
section 4.2). Class activation maps: where a layer finds evidence (Grad-CAM; Selvaraju et al., arXiv 1610.02391).

For segmentation the class's logit is the mean over the selected pixels (Vinogradova et al., arXiv 2002.11434), and each
position has its own gradient (HiResCAM; Draelos and Carin, arXiv 2011.08891).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.errors import BadView
from convoy.models.visualize import activation_maximization, hooks
from convoy.models.visualize.activation_maximization import Tick, probability
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.subjects import Pixels, Size, Subject

BACKGROUND = "background"

FOR, AGAINST = (255, 30, 0), (0, 60, 255)
MAX_OPACITY = 0.85  # opacity of the highest value
OPACITY_EXPONENT = 0.7  # below 1: on a colourful picture a faint tint would be invisible
MARGIN_SHARE = 24  # of the shorter side: the margin that stays bright around a single pixel
DIMMED = 0.35  # of its own brightness, for pixels that are not selected


@dataclass(frozen=True)
class Target:
    """A class. `where` (h, w) selects pixels of the network's input without padding; None for a classifier.
    `confidence` is its probability, 0..1, averaged over those pixels."""

    index: int
    label: str
    where: Tensor | None
    confidence: float

    def logit(self, logits: Tensor) -> Tensor:
        """Returns the class's logit for each output, (N,); for segmentation the mean over the selected pixels."""
        return self._mean(logits[:, self.index])

    def probability(self, logits: Tensor) -> Tensor:
        """Returns the class's probability, 0..1, in the same way."""
        return self._mean(probability(logits, torch.full((len(logits),), self.index)))

    def _mean(self, values: Tensor) -> Tensor:
        if self.where is None:
            return values
        height, width = self.where.shape
        return values[:, :height, :width][:, self.where].mean(dim=1)


def target_of(subject: Subject, picture: Tensor, index: int | None, at: tuple[int, int] | None) -> Target:
    """Returns the target for one picture, (1, h, w, C): the class `index`, or the predicted one.

    For segmentation: the pixels predicted as `index`, or if it is None as the most frequent class other than the
    background; or the one pixel `at` row and column, with its predicted class. Raises BadView if no pixel is predicted
    as the class, or `at` is outside.
    """
    size = (picture.shape[1], picture.shape[2])
    with torch.no_grad():
        logits = hooks.logits(subject, picture)
    labels = subject.description.labels
    if subject.description.task == "classification":
        if at is not None:
            raise BadView(f"--at requires a segmentation network, {subject.name} predicts one class per image")
        chosen, where = int(logits.argmax()) if index is None else index, None
    else:
        predicted = logits[0, :, : size[0], : size[1]].argmax(dim=0)
        chosen, where = _pixels(predicted, labels, index, at)
    unscored = Target(chosen, labels[chosen], where, 0.0)
    return Target(chosen, labels[chosen], where, float(unscored.probability(logits)))


def occlusion(subject: Subject, picture: Tensor, target: Target, patch: int, stride: int, tick: Tick) -> Tensor:
    """Returns the drop in the target's probability, (h, w), -1..1: at each pixel the mean over all patches that cover
    it. A negative value is a rise: the covered part is evidence against the class.

    picture  (1, h, w, C)
    patch    side in pixels of the covering square, which moves by `stride` pixels
    tick     called after each patch of `places`

    The cover has the mean colour of the training images, which is the most neutral for the network.
    """
    size = (picture.shape[1], picture.shape[2])
    fallen, covered = torch.zeros(size), torch.zeros(size)
    spots = places(size, patch, stride)
    cover = torch.tensor(subject.description.mean)
    with torch.no_grad():
        for batch in activation_maximization.batches(len(spots), size):
            pictures = picture.repeat(len(batch), 1, 1, 1)
            for image, place in zip(pictures, batch, strict=True):
                image[_patch(spots[place], patch)] = cover
            values = target.probability(hooks.logits(subject, pictures))
            for place, value in zip(batch, values.tolist(), strict=True):
                fallen[_patch(spots[place], patch)] += target.confidence - value
                covered[_patch(spots[place], patch)] += 1
                tick()
    return fallen / covered


def places(size: Size, patch: int, stride: int) -> list[tuple[int, int]]:
    """Returns top and left of every patch in row-major order; the last ones are aligned with the image's edge."""
    return [(top, left) for top in _starts(size[0], patch, stride) for left in _starts(size[1], patch, stride)]


def activation_map(subject: Subject, picture: Tensor, target: Target, layer: Layer) -> Tensor:
    """Returns the evidence for the target at each pixel, (h, w), 0 and above, in logits per position of the layer; all
    0 if there is none.

    picture  (1, h, w, C)

    Each channel of the layer is weighted by its gradient, averaged over all positions for a classifier; only the
    positive part of the sum over channels counts. A pixel's class depends on the positions around it, so an averaged
    weight would highlight similar positions everywhere.
    """
    with torch.enable_grad(), hooks.watch(subject, [layer.name]) as outputs:
        # The input requires a gradient, because the weights do not.
        logits = hooks.logits(subject, picture.clone().requires_grad_())
        maps = outputs[layer.name]
        (gradient,) = torch.autograd.grad(target.logit(logits).sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True) if target.where is None else gradient
    evidence = (weights * maps.detach()).sum(dim=1, keepdim=True).clamp(min=0)
    height, width = picture.shape[1:3]
    # The layer's maps cover the whole input, including padding.
    whole = F.interpolate(evidence, size=subject.as_input(picture).shape[2:], mode="bilinear", align_corners=False)
    return whole[0, 0, :height, :width]


def overlay(image: Pixels, values: Tensor) -> Pixels:
    """Tints the image by a map: red for positive values, blue for negative ones, scaled to the largest absolute value.

    image   (H, W, 3) or (H, W, 1)
    values  (H, W)
    returns (H, W, 3)
    """
    shares = values.numpy() / (float(values.abs().max()) or 1.0)
    colours = np.where(shares[..., None] > 0, FOR, AGAINST)
    opacity = MAX_OPACITY * np.abs(shares)[..., None] ** OPACITY_EXPONENT
    blended: Pixels = (_rgb(image) * (1 - opacity) + colours * opacity).round().astype(np.uint8)
    return blended


def highlighted(image: Pixels, where: Tensor) -> Pixels:
    """Darkens all but the selected pixels, (H, W), of an image: (H, W, 3). A margin around a single pixel stays bright
    too, so that it is visible."""
    if where.sum() == 1:
        around = max(1, min(where.shape) // MARGIN_SHARE)
        where = F.max_pool2d(where[None].float(), 2 * around + 1, stride=1, padding=around)[0] > 0
    shares = np.where(where.numpy()[..., None], 1.0, DIMMED)
    dimmed: Pixels = (_rgb(image) * shares).round().astype(np.uint8)
    return dimmed


def _pixels(predicted: Tensor, labels: list[str], index: int | None, at: tuple[int, int] | None) -> tuple[int, Tensor]:
    if at is not None:
        row, column = _inside(at, (predicted.shape[0], predicted.shape[1]))
        where = torch.zeros_like(predicted, dtype=torch.bool)
        where[row, column] = True
        return int(predicted[row, column]) if index is None else index, where
    counts = torch.bincount(predicted.flatten(), minlength=len(labels))
    if index is None:
        things = [place for place in counts.argsort(descending=True).tolist() if labels[place] != BACKGROUND]
        index = next((place for place in things if counts[place]), int(counts.argmax()))
    if not counts[index]:
        present = ", ".join(labels[place] for place in counts.nonzero().flatten().tolist())
        raise BadView(
            f"no pixel of the image is predicted as {labels[index]!r}, want one of: {present}; or --at ROW,COLUMN"
        )
    return index, predicted == index


def _inside(at: tuple[int, int], size: Size) -> tuple[int, int]:
    if not all(0 <= place < side for place, side in zip(at, size, strict=True)):
        raise BadView(f"--at {at[0]},{at[1]} is outside, want a row below {size[0]} and a column below {size[1]}")
    return at


def _starts(side: int, patch: int, stride: int) -> Iterator[int]:
    last = max(0, side - patch)
    yield from range(0, last, stride)
    yield last


def _patch(place: tuple[int, int], patch: int) -> tuple[slice, slice]:
    top, left = place
    return slice(top, top + patch), slice(left, left + patch)


def _rgb(image: Pixels) -> Pixels:
    return np.broadcast_to(image, (*image.shape[:2], 3))
