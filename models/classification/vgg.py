"""VGG (Simonyan and Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556)."""

from math import prod

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 4096
REDUCTION = 1 << len(WIDTHS)  # of each side, by the five poolings


class VGG(nn.Module):
    """Stacks of 3x3 convolutions, each followed by 2x2 max pooling; then three dense layers (table 1 of the paper).

    (N, channels, H, W) float32 at the given `size`, at least 32x32 -> (N, classes)

    `layers` is the number of convolutions in each of the five stacks: (2, 2, 3, 3, 3) is column D, VGG16, and (2, 2, 4,
    4, 4) column E, VGG19. The first dense layer reads the whole last maps, so its shape depends on `size`. The paper
    initialises the deep columns from a trained shallow one; here they start from the initialisation of He et al. (arXiv
    1502.01852), which was designed for such depths.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (2, 2, 3, 3, 3),
        channels: int = 3,
        classes: int = 1000,
        size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        if min(size) < REDUCTION:
            raise ValueError(f"size is {size[0]}x{size[1]}, want at least {REDUCTION}x{REDUCTION}")
        self.features = nn.Sequential(*map(Stack, (channels, *WIDTHS), WIDTHS, layers))
        self.grid = (WIDTHS[-1], size[0] // REDUCTION, size[1] // REDUCTION)  # the output of `features`: C, H, W
        self.classifier = nn.Sequential(
            nn.Linear(prod(self.grid), HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(HIDDEN, classes),
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (N, 512, H // 32, W // 32)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class Stack(nn.Sequential):
    """Padded 3x3 convolutions with ReLU, then 2x2 max pooling.

    (N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2)
    """

    def __init__(self, in_channels: int, out_channels: int, convolutions: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, *[out_channels] * (convolutions - 1)):
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.MaxPool2d(2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
