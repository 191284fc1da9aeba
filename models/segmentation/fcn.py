"""FCN (Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, arXiv 1411.4038)."""

import torch
from torch import Tensor, nn

from convoy.models.classification.vgg import HIDDEN, WIDTHS, Stack

LAYERS = (2, 2, 3, 3, 3)  # convolutions in each stack of VGG16


class FCN(nn.Module):
    """VGG16 with its dense layers as convolutions, and scores scaled up to the image's size.

    (N, channels, H, W) float32, any H and W from 1 -> (N, classes, H, W)

    `stride` 32 scales up the last scores at once (FCN-32s, figure 3); 16 first adds scores of the fourth pooling at
    twice the resolution (FCN-16s), and 8 also those of the third (FCN-8s). `width` is the number of maps in the first
    stack, 64 in VGG16; all other widths scale with it. `features` has the names and shapes of VGG16's; `fc6` and `fc7`
    are its first two dense layers, reshaped.

    Departures: the paper pads the image with 100 zeros, so that the unpadded 7x7 fc6 has 7 rows to read from any image.
    This costs the work of 200 more rows and columns and shifts the grid of scores by 3 pixels. Here fc6 is padded by 3
    instead. With aligned grids, both outputs are equal wherever no padding is in the receptive field. The transposed
    convolutions scale each class separately, as the paper's do when they are bilinear; the last one is fixed, the
    others are trained.
    """

    def __init__(self, stride: int, channels: int = 3, classes: int = 21, width: int = 64) -> None:
        super().__init__()
        widths = [maps * width // WIDTHS[0] for maps in WIDTHS]
        hidden = HIDDEN * width // WIDTHS[0]
        stacks = list(map(Stack, (channels, *widths), widths, LAYERS))
        for stack in stacks:
            stack[-1] = nn.MaxPool2d(2, ceil_mode=True)  # as in Caffe, so that no border is lost
        self.features = nn.Sequential(*stacks)
        self.fc6 = nn.Conv2d(widths[-1], hidden, 7, padding=3)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.dropout = nn.Dropout(0.5)
        self.score = nn.Conv2d(hidden, classes, 1)
        skips = {32: 0, 16: 1, 8: 2}[stride]
        # Of the fourth pooling, then of the third.
        self.skip_scores = nn.ModuleList(nn.Conv2d(maps, classes, 1) for maps in widths[3 : 3 - skips : -1])
        self.up = nn.ModuleList(BilinearUp(classes, 2) for _ in range(skips))
        self.last_up = BilinearUp(classes, stride)
        self.last_up.weight.requires_grad_(False)
        for layer in (*self.features.modules(), self.fc6, self.fc7):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # otherwise signals vanish at this depth
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pooled = []
        for stack in self.features:
            x = stack(x)  # (N, maps, ceil(H / 2), ceil(W / 2)) of the stack's input
            pooled.append(x)
        x = self.dropout(torch.relu(self.fc6(x)))
        x = self.dropout(torch.relu(self.fc7(x)))
        x = self.score(x)  # (N, classes, ceil(H / 32), ceil(W / 32))
        for up, score, skip in zip(self.up, self.skip_scores, (pooled[3], pooled[2]), strict=False):
            x = up(x)[..., : skip.shape[-2], : skip.shape[-1]] + score(skip)
        logits: Tensor = self.last_up(x)[..., :height, :width]
        return logits


class BilinearUp(nn.ConvTranspose2d):
    """A transposed convolution per class, initialised to bilinear interpolation (section 3.3).

    (N, classes, H, W) -> (N, classes, factor * H, factor * W), `factor` even; the input is 0 beyond its edges
    """

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__(classes, classes, 2 * factor, factor, factor // 2, groups=classes, bias=False)
        # A triangle that spans two input steps, sampled at the centres of the output pixels.
        tent = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        with torch.no_grad():
            self.weight.copy_(torch.outer(tent, tent))
