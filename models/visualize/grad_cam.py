"""Class activation maps: where a layer finds evidence for a class (Grad-CAM; Selvaraju et al., arXiv 1610.02391).

For segmentation the class's logit is the mean over the selected pixels (Vinogradova et al., arXiv 2002.11434), and each
position has its own gradient (HiResCAM; Draelos and Carin, arXiv 2011.08891).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.visualize import hooks
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.network import Subject
from convoy.models.visualize.target import Target


def activation_map(subject: Subject, picture: Tensor, target: Target, layer: Layer) -> Tensor:
    """Returns the evidence for the target at each pixel, (h, w), 0 and above, in logits per position of the layer; all
    0 if there is none.

    picture  (1, h, w, C)

    Each channel of the layer is weighted by its gradient, averaged over all positions for a classifier; only the
    positive part of the sum over channels counts. A pixel's class depends on the positions around it, so an averaged
    weight would highlight similar positions everywhere.
    """
    with torch.enable_grad(), hooks.watch(subject, [layer.name]) as seen:
        # The input requires a gradient, because the weights do not.
        logits = hooks.logits(subject, picture.clone().requires_grad_())
        maps = seen[layer.name]
        (gradient,) = torch.autograd.grad(target.logit(logits).sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True) if target.where is None else gradient
    found = (weights * maps.detach()).sum(dim=1, keepdim=True).clamp(min=0)
    height, width = picture.shape[1:3]
    # The layer's maps cover the whole input, including padding.
    whole = F.interpolate(found, size=subject.entered(picture).shape[2:], mode="bilinear", align_corners=False)
    return whole[0, 0, :height, :width]
