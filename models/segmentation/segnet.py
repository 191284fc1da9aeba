"""SegNet (Badrinarayanan, Kendall, Cipolla: A Deep Convolutional Encoder-Decoder Architecture, arXiv 1511.00561)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.blocks import ConvNorm2d

# The levels of VGG16's body: how many convolutions, and their maps in units of the width.
LEVELS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class SegNet(nn.Module):
    """Logits for every pixel: an encoder that remembers where its maxima were, and a decoder that lays values there.

    (N, channels, H, W) float32, any H and W from 1 -> (N, classes, H, W)

    `width` is the number of maps at full resolution; with the paper's 64 the encoder is VGG16's body. The decoder
    mirrors it, each convolution with batch normalisation and ReLU (as in the network that the authors published; the
    text leaves the ReLU open), the last one answering the classes. Departures: convolutions before a normalisation have
    no bias, which it would take away again; an odd side is rounded up where it is halved, so that no border is lost.
    """

    def __init__(self, channels: int = 3, classes: int = 11, width: int = 64) -> None:
        super().__init__()
        before = channels
        encoder, decoder = [], []
        for level, (count, scale) in enumerate(LEVELS):
            maps = [scale * width] * count
            encoder.append(_convolutions([before, *maps]))
            # The last convolution of the topmost level is the output's.
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
    """The maximum of every 2x2 block, and which of its four pixels, row by row, was the first to have it.

    (N, C, H, W) -> both (N, C, ceil(H / 2), ceil(W / 2)), the second int64, 0..3

    What `max_pool2d(x, 2, ceil_mode=True, return_indices=True)` says, with the index counted inside the block: laid
    down as plain operations, since onnxruntime has no MaxUnpool for CUDA.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        best, winner = self.blocks(x).max(dim=2)
        return best, winner

    def blocks(self, x: Tensor) -> Tensor:
        """(N, C, 4, ceil(H / 2), ceil(W / 2)), the pixels of each block; beyond an odd side nothing wins."""
        height, width = x.shape[-2:]
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, (0, 2 * columns - width, 0, 2 * rows - height), value=-torch.inf)
        return F.pixel_unshuffle(x, 2).reshape(len(x), -1, 4, rows, columns)


def unpool(x: Tensor, winner: Tensor, height: int, width: int) -> Tensor:
    """Each value at the pixel of its 2x2 block that `Pool` found to be the maximum, 0 at the others.

    (N, C, ceil(height / 2), ceil(width / 2)) twice -> (N, C, height, width), as `max_unpool2d`
    """
    places = torch.arange(4, device=x.device)[:, None, None]
    blocks = torch.where(winner[:, :, None] == places, x[:, :, None], 0.0)  # (N, C, 4, rows, columns)
    return F.pixel_shuffle(blocks.flatten(1, 2), 2)[..., :height, :width]


def _convolutions(maps: Sequence[int]) -> nn.Sequential:
    # Statistics that follow the weights within a few dozen batches: own data is often a few hundred.
    layers = (ConvNorm2d(before, after, 3, padding=1, momentum=0.1) for before, after in pairwise(maps))
    return nn.Sequential(*layers)
