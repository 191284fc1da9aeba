"""GoogLeNet (Szegedy et al.: Going Deeper with Convolutions, arXiv 1409.4842)."""

from torch import Tensor, nn

from convoy.models.blocks import Branches

# Table 1: the maps of 1x1, of 3x3 after its reduction, of 5x5 after its reduction, and of the pooling projection.
Widths = tuple[int, tuple[int, int], tuple[int, int], int]
TABLE: dict[str, Widths] = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
LEAST = 79  # pixels: the smallest side at which the auxiliary heads' 5x5 pooling fits


class GoogLeNet(nn.Module):
    """Nine Inception modules (table 1 and figure 3 of the paper).

    (N, channels, H, W) float32 at the given `size`, at least 79x79 -> (N, classes); in training mode also the logits of
    the auxiliary heads on 4a and 4d. The shapes of their dense layers depend on `size`

    The network has 6,998,552 parameters for 1,000 classes, and the heads 6,379,728. Table 1 gives most of them (in
    units of 1,024, without biases), with exceptions: its 2.7 K for the first convolution fit 7x1 and 1x7 kernels, 7x7
    has 9 K; its 463 K for 4c should be 497, and its 1072 K for 5a 1018; 4a, 4b, 4d, 4e and 5b differ by 2 % at most.

    The paper gives no values for the local response normalisation, so these are Krizhevsky's; nor for initialisation,
    so the convolutions start from He's (arXiv 1502.01852).
    """

    auxiliary_weight = 0.3  # section 5

    def __init__(self, channels: int = 3, classes: int = 1000, size: tuple[int, int] = (224, 224)) -> None:
        super().__init__()
        if min(size) < LEAST:
            raise ValueError(f"size is {size[0]}x{size[1]}, want at least {LEAST}x{LEAST}")
        self.stem = nn.Sequential(
            *convolution(channels, 64, 7, stride=2),  # (N, 64, 112, 112)
            _halve(),  # (N, 64, 56, 56)
            _response_norm(),
            *convolution(64, 64, 1),
            *convolution(64, 192, 3),  # (N, 192, 56, 56)
            _response_norm(),
            _halve(),  # (N, 192, 28, 28)
        )
        self.to_4a = nn.Sequential(
            inception(192, TABLE["3a"]),  # (N, 256, 28, 28)
            inception(256, TABLE["3b"]),  # (N, 480, 28, 28)
            _halve(),  # (N, 480, 14, 14)
            inception(480, TABLE["4a"]),  # (N, 512, 14, 14)
        )
        self.to_4d = nn.Sequential(
            inception(512, TABLE["4b"]),  # (N, 512, 14, 14)
            inception(512, TABLE["4c"]),  # (N, 512, 14, 14)
            inception(512, TABLE["4d"]),  # (N, 528, 14, 14)
        )
        self.to_5b = nn.Sequential(
            inception(528, TABLE["4e"]),  # (N, 832, 14, 14)
            _halve(),  # (N, 832, 7, 7)
            inception(832, TABLE["5a"]),  # (N, 832, 7, 7)
            inception(832, TABLE["5b"]),  # (N, 1024, 7, 7)
        )
        self.dropout = nn.Dropout(0.4)
        self.output = nn.Linear(1024, classes)
        grid = ((size[0] + 1) // 16, (size[1] + 1) // 16)  # the map size from 4a to 4e
        self.heads = nn.ModuleList((AuxiliaryHead(512, grid, classes), AuxiliaryHead(528, grid, classes)))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        at_4a = self.to_4a(self.stem(x))
        at_4d = self.to_4d(at_4a)
        x = self.to_5b(at_4d).mean(dim=(2, 3))  # (N, 1024)
        logits: Tensor = self.output(self.dropout(x))
        if not self.training:
            return logits
        return logits, *(head(maps) for head, maps in zip(self.heads, (at_4a, at_4d), strict=True))


class AuxiliaryHead(nn.Sequential):
    """A small auxiliary classifier that adds gradient in the middle of the network (section 5).

    (N, in_channels, *grid) -> (N, classes)
    """

    def __init__(self, in_channels: int, grid: tuple[int, int], classes: int) -> None:
        rows, columns = ((side - 5) // 3 + 1 for side in grid)
        super().__init__(
            nn.AvgPool2d(5, stride=3),  # (N, in_channels, 4, 4)
            *convolution(in_channels, 128, 1),
            nn.Flatten(),
            nn.Linear(128 * rows * columns, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.7),
            nn.Linear(1024, classes),
        )


def inception(in_channels: int, widths: Widths) -> Branches:
    """Figure 2b: (N, in_channels, H, W) -> (N, the four widths together, H, W)."""
    single, (reduce_3, triple), (reduce_5, quintuple), projected = widths
    return Branches(
        nn.Sequential(*convolution(in_channels, single, 1)),
        nn.Sequential(*convolution(in_channels, reduce_3, 1), *convolution(reduce_3, triple, 3)),
        nn.Sequential(*convolution(in_channels, reduce_5, 1), *convolution(reduce_5, quintuple, 5)),
        nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *convolution(in_channels, projected, 1)),
    )


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)), then ReLU."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2), nn.ReLU(inplace=True)


def _halve() -> nn.MaxPool2d:
    # The last window may extend past the edge: table 1 goes from 112 to 56, 28, 14 and 7.
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _response_norm() -> nn.LocalResponseNorm:
    # x / (2 + 1e-4 sum x^2)^0.75 over five maps. PyTorch divides its alpha by the number of maps.
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)  # so that all classes start equally likely
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.zeros_(module.get_parameter("bias"))
