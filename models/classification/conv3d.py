"""C3D (Tran et al.: Learning Spatiotemporal Features with 3D Convolutional Networks, arXiv 1412.0767, section 3)."""

import math

from torch import Tensor, nn

# Feature maps of the convolutions between poolings, as multiples of the first convolution's.
STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
POOLED = 5  # poolings; the first does not pool along the first side


class Conv3d(nn.Module):
    """3D convolutions for a clip (time, height, width), or a volume (depth, height, width), of several channels.

    (N, channels, *size) float32 -> (N, classes); the convolutions and dense layers have 78,409,573 parameters for 101
    classes at the paper's size

    `width` is the number of maps of the first convolution, 64 in the paper; all others, and the 4,096 units of the
    dense layers, scale with it. `size` in the paper is 16 frames of 112x112. Departures: batch normalisation after
    every convolution, since such a deep network otherwise needs the paper's million clips before it learns; and pooling
    of an odd side keeps the last plane, as the padding of the last pooling does at the paper's size.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 101,
        size: tuple[int, ...] = (16, 112, 112),
        width: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        maps = channels
        for stage, multiples in enumerate(STAGES):
            for multiple in multiples:
                layers += convolution(maps, multiple * width)
                maps = multiple * width
            # Motion is short: the first pooling keeps every frame.
            pool = (1, 2, 2) if stage == 0 else (2, 2, 2)
            layers.append(nn.MaxPool3d(pool, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(maps * places(size), 64 * width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(64 * width, 64 * width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(64 * width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


def convolution(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """3x3x3: (N, in_channels, *size) -> (N, out_channels, *size)."""
    return (
        nn.Conv3d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
    )


def places(size: tuple[int, ...]) -> int:
    """Returns the number of positions in each map after the last pooling."""
    depth, height, width = size
    return math.prod((-(-depth // 2 ** (POOLED - 1)), -(-height // 2**POOLED), -(-width // 2**POOLED)))
