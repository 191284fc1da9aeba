"""FCN (Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, arXiv 1411.4038)."""

import torch
from torch import Tensor, nn

from convoy.models.classification.vgg import HIDDEN, WIDTHS, Stack

LAYERS = (2, 2, 3, 3, 3)  # convolutions in each stack of VGG16


class FCN(nn.Module):
    """Logits for every pixel: VGG16 with its dense layers as convolutions, and scores brought back to the image's size.

    (N, channels, H, W) float32, any H and W from 1 -> (N, classes, H, W)

    `stride` 32 scales the last scores up at once (FCN-32s, figure 3); 16 first adds scores of the fourth pooling at
    twice the resolution (FCN-16s), and 8 those of the third as well (FCN-8s). `width` is the maps of the first stack,
    64 in VGG16, and everything inside follows it; `features` has the names and shapes of VGG16's, and `fc6` and `fc7`
    are its first two dense layers, reshaped.

    Departures. The paper lays 100 zeros around the image, so that fc6, which is 7x7 and not padded, has 7 rows to read
    from any image: the work of 200 rows and columns more, and a grid of scores that lies 3 pixels off the image's. Here
    fc6 is padded by 3 instead. Both answer the same where no padding is seen, the grids laid over each other. The
    up-convolutions scale each class on its own, as the paper's do when they are bilinear; the last one stays so, the
    others learn.
    """

    def __init__(self, stride: int, channels: int = 3, classes: int = 21, width: int = 64) -> None:
        super().__init__()
        widths = [maps * width // WIDTHS[0] for maps in WIDTHS]
        hidden = HIDDEN * width // WIDTHS[0]
        stacks = list(map(Stack, (channels, *widths), widths, LAYERS))
        for stack in stacks:
            stack[-1] = nn.MaxPool2d(2, ceil_mode=True)  # as in Caffe: no border is lost
        self.features = nn.Sequential(*stacks)
        self.fc6 = nn.Conv2d(widths[-1], hidden, 7, padding=3)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.dropout = nn.Dropout(0.5)
        self.score = nn.Conv2d(hidden, classes, 1)
        skips = {32: 0, 16: 1, 8: 2}[stride]
        # Of the fourth pooling first, then of the third.
        self.skip_scores = nn.ModuleList(nn.Conv2d(maps, classes, 1) for maps in widths[3 : 3 - skips : -1])
        self.up = nn.ModuleList(BilinearUp(classes, 2) for _ in range(skips))
        self.last_up = BilinearUp(classes, stride)
        self.last_up.weight.requires_grad_(False)
        for layer in (*self.features.modules(), self.fc6, self.fc7):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # without it nothing arrives this deep
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pooled = []
        for stack in self.features:
            x = stack(x)  # (N, maps, ceil(H / 2), ceil(W / 2)), of the one before
            pooled.append(x)
        x = self.dropout(torch.relu(self.fc6(x)))
        x = self.dropout(torch.relu(self.fc7(x)))
        x = self.score(x)  # (N, classes, ceil(H / 32), ceil(W / 32))
        for up, score, skip in zip(self.up, self.skip_scores, (pooled[3], pooled[2]), strict=False):
            x = up(x)[..., : skip.shape[-2], : skip.shape[-1]] + score(skip)
        logits: Tensor = self.last_up(x)[..., :height, :width]
        return logits


class BilinearUp(nn.ConvTranspose2d):
    """An up-convolution of each class on its own that starts as bilinear interpolation (section 3.3).

    (N, classes, H, W) -> (N, classes, factor * H, factor * W), `factor` even; beyond its sides the input is 0
    """

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__(classes, classes, 2 * factor, factor, factor // 2, groups=classes, bias=False)
        # A tent over two steps of the input, sampled at the centres of the output's pixels.
        tent = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        with torch.no_grad():
            self.weight.copy_(torch.outer(tent, tent))
