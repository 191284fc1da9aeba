"""Class-activation maps: where a layer sees what speaks for a class (Grad-CAM; Selvaraju et al., arXiv 1610.02391).

For segmentation the class's logit is the mean over the pixels that count (Vinogradova et al., arXiv 2002.11434), and
each place has its own gradient (HiResCAM; Draelos and Carin, arXiv 2011.08891).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.visualize import hooks
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.network import Subject
from convoy.models.visualize.target import Target


def activation_map(subject: Subject, picture: Tensor, target: Target, layer: Layer) -> Tensor:
    """What speaks for the target at each pixel, (h, w), 0 and more, in logits a place of the layer; all 0 where
    nothing does.

    picture  (1, h, w, C)

    Each channel of the layer weighs what its gradient is, in the mean of all places where the whole image gives one
    answer; of the sum over channels only the positive part counts. Some pixels' answer hangs on the places around them,
    and a mean weight would show the like of those places everywhere.
    """
    with torch.enable_grad(), hooks.watch(subject, [layer.name]) as seen:
        # So that a gradient gets there: the weights have none.
        logits = hooks.logits(subject, picture.clone().requires_grad_())
        maps = seen[layer.name]
        (gradient,) = torch.autograd.grad(target.logit(logits).sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True) if target.where is None else gradient
    found = (weights * maps.detach()).sum(dim=1, keepdim=True).clamp(min=0)
    height, width = picture.shape[1:3]
    # The layer's maps lie over the whole input, with its padding.
    whole = F.interpolate(found, size=subject.entered(picture).shape[2:], mode="bilinear", align_corners=False)
    return whole[0, 0, :height, :width]
