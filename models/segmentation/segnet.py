"""SegNet (Badrinarayanan, Kendall, Cipolla: A Deep Convolutional Encoder-Decoder Architecture, arXiv 1511.00561)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.blocks import ConvNorm2d

# The levels of VGG16's body: number of convolutions, and their maps as a multiple of the width.
LEVELS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class SegNet(nn.Module):
    """An encoder that records the positions of its maxima, and a decoder that places values there.

    (N, channels, H, W) float32, any H and W from 1 -> (N, classes, H, W)

    `width` is the number of maps at full resolution; with the paper's 64 the encoder is VGG16's body. The decoder
    mirrors it. Each of its convolutions has batch normalisation and ReLU (as in the authors' published network; the
    paper does not mention the ReLU), and the last outputs the classes. Departures: convolutions before a normalisation
    have no bias, which it would cancel; an odd side is rounded up when halved, so that no border is lost.
    """

    def __init__(self, channels: int = 3, classes: int = 11, width: int = 64) -> None:
        super().__init__()
        before = channels
        encoder, decoder = [], []
        for level, (count, scale) in enumerate(LEVELS):
            maps = [scale * width] * count
            encoder.append(_convolutions([before, *maps]))
            # The last convolution of the topmost level is the output layer.
            decoder.append(_convolutions([*maps, before] if level else maps))
            before = scale * width
        self.encoder = nn.ModuleList(encoder)
        self.pools = nn.ModuleList(Pool() for _ in LEVELS)
        self.decoder = nn.ModuleList(reversed(decoder))
        self.output = nn.Conv2d(width, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        sizes, winners = [], []
        for level, pool in zip(self.encoder, self.pools, strict=True):
            x = level(x)
            sizes.append(x.shape[-2:])
            x, winner = pool(x)  # (N, maps, ceil(H / 2), ceil(W / 2))
            winners.append(winner)
        for level in self.decoder:
            height, width = sizes.pop()
            x = level(unpool(x, winners.pop(), height, width))
        logits: Tensor = self.output(x)
        return logits


class Pool(nn.Module):
    """2x2 max pooling, with the position of the first maximum among the block's four pixels, row by row.

    (N, C, H, W) -> both (N, C, ceil(H / 2), ceil(W / 2)), the second int64, 0..3

    Equivalent to `max_pool2d(x, 2, ceil_mode=True, return_indices=True)` with the index relative to the block. It is
    built from plain operators because onnxruntime has no MaxUnpool for CUDA.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        best, winner = self.blocks(x).max(dim=2)
        return best, winner

    def blocks(self, x: Tensor) -> Tensor:
        """Returns (N, C, 4, ceil(H / 2), ceil(W / 2)), the pixels of each block; padding of an odd side never wins."""
        height, width = x.shape[-2:]
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, (0, 2 * columns - width, 0, 2 * rows - height), value=-torch.inf)
        # Not len(x): it is a plain number, for which the exporter would have to trace the network a second time.
        return F.pixel_unshuffle(x, 2).reshape(x.shape[0], -1, 4, rows, columns)


def unpool(x: Tensor, winner: Tensor, height: int, width: int) -> Tensor:
    """Places each value at the pixel of its 2x2 block where `Pool` found the maximum, and 0 at the others.

    (N, C, ceil(height / 2), ceil(width / 2)) twice -> (N, C, height, width), as `max_unpool2d`
    """
    places = torch.arange(4, device=x.device)[:, None, None]
    blocks = torch.where(winner[:, :, None] == places, x[:, :, None], 0.0)  # (N, C, 4, rows, columns)
    return F.pixel_shuffle(blocks.flatten(1, 2), 2)[..., :height, :width]


def _convolutions(maps: Sequence[int]) -> nn.Sequential:
    # Statistics adapt within a few dozen batches: a user's data set often has only a few hundred.
    layers = (ConvNorm2d(before, after, 3, padding=1, momentum=0.1) for before, after in pairwise(maps))
    return nn.Sequential(*layers)
