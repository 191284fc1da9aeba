"""ResNet (He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv 1512.03385)."""

from typing import NamedTuple

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
STRIDES = (1, 2, 2, 2)
STEM_STRIDE = 4
BRANCH = 0.2  # initial scale of a block's residual branch


class Form(NamedTuple):
    """`bias`: the convolutions have a bias, though the following normalisation cancels it. `early`: a bottleneck's
    stride is on its first convolution."""

    bias: bool
    eps: float
    early: bool


RESNET_FORMS = {
    "v1": Form(bias=True, eps=1.001e-5, early=True),  # Keras, and the paper's stride
    "v1.5": Form(bias=False, eps=1e-5, early=False),  # torchvision: 0.5 % more accurate, 12 % more arithmetic
}


class ResNet(nn.Module):
    """Four stages of residual blocks; every stage but the first halves the sides (table 1 of the paper).

    (N, channels, H, W) float32 -> (N, classes)

    `layers` is the number of blocks in each stage, `bottleneck` their kind: (2, 2, 2, 2) basic blocks are ResNet-18,
    (3, 4, 6, 3) bottlenecks ResNet-50. `form` is one of `FORMS`. `output_stride` is the reduction of the sides by all
    stages. If it is 16 or 8 instead of 32, the last stages keep the sides and dilate their kernels instead (Chen et
    al., arXiv 1706.05587, section 3.1), with the same weights.

    Every block starts close to the identity, by the initial scale of its last normalisation (0 in Goyal et al., arXiv
    1706.02677, section 5.1). This bounds the rounding errors and gradients of the deep networks.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        bottleneck: bool = True,
        channels: int = 3,
        classes: int = 1000,
        form: str = "v1",
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if form not in RESNET_FORMS:
            raise ValueError(f"form is {form!r}, want one of: {', '.join(RESNET_FORMS)}")
        block = Bottleneck if bottleneck else Basic
        self.stem = ConvNorm(channels, WIDTHS[0], 7, RESNET_FORMS[form], stride=2, padding=3)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.Sequential()
        maps, reduction, dilation = WIDTHS[0], STEM_STRIDE, 1
        for number, (count, width, stride) in enumerate(zip(layers, WIDTHS, STRIDES, strict=True), start=1):
            before = dilation
            if reduction * stride > output_stride:
                stride, dilation = 1, dilation * stride  # noqa: PLW2901
            reduction *= stride
            # The input of the first block is not dilated yet.
            blocks = [block(maps, width, stride, before, RESNET_FORMS[form])]
            maps = width * block.expansion
            blocks += [block(maps, width, 1, dilation, RESNET_FORMS[form]) for _ in range(count - 1)]
            self.stages.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(maps, classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.stem(x)))  # (N, 64, H / 4, W / 4)
        x = self.stages(x)  # (N, 512 or 2048, H / 32, W / 32)
        logits: Tensor = self.classifier(self.mean(x).flatten(1))
        return logits


class ConvNorm(nn.Sequential):
    """A convolution in the network's form, and batch normalisation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        form: Form,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=form.bias)
        self.norm = nn.BatchNorm2d(out_channels, eps=form.eps)


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut (figure 5 of the paper, left).

    (N, in_channels, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, form: Form) -> None:
        super().__init__()
        self.step1 = ConvNorm(in_channels, width, 3, form, stride, padding=dilation, dilation=dilation)
        self.step2 = ConvNorm(width, width, 3, form, padding=dilation, dilation=dilation)
        self.shortcut = _shortcut(in_channels, width, stride, form)
        self.activation = nn.ReLU(inplace=True)
        nn.init.constant_(self.step2.norm.weight, BRANCH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.step1(x))
        summed: Tensor = self.activation(self.step2(y) + self.shortcut(x))
        return summed


class Bottleneck(nn.Module):
    """A 1x1 convolution to `width` maps, a 3x3 one, and a 1x1 one to four times as many, beside a shortcut (figure 5 of
    the paper, right).

    (N, in_channels, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride))
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, form: Form) -> None:
        super().__init__()
        out_channels = width * self.expansion
        early, late = (stride, 1) if form.early else (1, stride)
        self.step1 = ConvNorm(in_channels, width, 1, form, early)
        self.step2 = ConvNorm(width, width, 3, form, late, padding=dilation, dilation=dilation)
        self.step3 = ConvNorm(width, out_channels, 1, form)
        self.shortcut = _shortcut(in_channels, out_channels, stride, form)
        self.activation = nn.ReLU(inplace=True)
        nn.init.constant_(self.step3.norm.weight, BRANCH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.step1(x))
        y = self.activation(self.step2(y))
        summed: Tensor = self.activation(self.step3(y) + self.shortcut(x))
        return summed


def _shortcut(in_channels: int, out_channels: int, stride: int, form: Form) -> nn.Module:
    # Option B of the paper: a projection if the shape changes, else the identity.
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, 1, form, stride)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
