"""DeepLabv3 (Chen et al.: Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.classification.resnet import RESNET_FORMS, STEM_STRIDE, STRIDES, Bottleneck, ConvNorm

LAYERS = (3, 4, 6, 3)  # blocks in each stage of ResNet-50
RESNET_FORM = RESNET_FORMS["v1.5"]
RATES = (6, 12, 18)  # of the pyramid, at an output stride of 16


class Form(NamedTuple):
    """`grid`: the dilation rates of the last stage's three blocks, relative to the stage's (section 3.2.1 of the
    paper). `late`: the first block of a dilated stage still has the previous stage's rate. `refined`: a 3x3 convolution
    between the pyramid and the class scores."""

    grid: tuple[int, int, int]
    late: bool
    refined: bool


FORMS = {
    "paper": Form(grid=(1, 2, 4), late=False, refined=False),
    "torchvision": Form(grid=(1, 1, 1), late=True, refined=True),
}


class DeepLabV3(nn.Module):
    """A ResNet-50 with dilated kernels in the last stages, and a pyramid of dilated convolutions.

    (N, channels, H, W) float32, any H and W from 1 -> (N, classes, H, W)

    `output_stride`, 16 or 8, is the ratio of the image's size to that of the last maps; bilinear interpolation scales
    the scores to the image's size. `width` is the number of maps in the stem, 64 in ResNet-50; all other widths scale
    with it. `form` is one of `FORMS`. Departure: the interpolation aligns pixel edges, as in torchvision; the paper's
    aligns the centres of the corner pixels.
    """

    def __init__(
        self, channels: int = 3, classes: int = 21, width: int = 64, output_stride: int = 16, form: str = "paper"
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride is {output_stride}, want 8 or 16")
        if form not in FORMS:
            raise ValueError(f"form is {form!r}, want one of: {', '.join(FORMS)}")
        maps = 4 * width
        self.stem = ConvNorm(channels, width, 7, RESNET_FORM, stride=2, padding=3)
        self.stages = _stages(width, output_stride, FORMS[form])
        self.pyramid = Pyramid(32 * width, maps, [rate * 16 // output_stride for rate in RATES])
        self.refine = ConvNorm(maps, maps, 3, RESNET_FORM, padding=1) if FORMS[form].refined else None
        self.score = nn.Conv2d(maps, classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer is not self.score:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = F.max_pool2d(torch.relu(self.stem(x)), 3, stride=2, padding=1)  # (N, width, H / 4, W / 4)
        x = self.stages(x)  # (N, 32 * width, H / output_stride, W / output_stride)
        x = self.pyramid(x)  # (N, 4 * width, H / output_stride, W / output_stride)
        if self.refine is not None:
            x = torch.relu(self.refine(x))
        logits: Tensor = F.interpolate(self.score(x), size, mode="bilinear", align_corners=False)
        return logits


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: convolutions at several rates, and features of the whole image (figure 5).

    (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, rates: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(in_channels, out_channels, 1, RESNET_FORM),
                *(ConvNorm(in_channels, out_channels, 3, RESNET_FORM, padding=rate, dilation=rate) for rate in rates),
            ]
        )
        self.image = ImagePooling(in_channels, out_channels)
        self.project = ConvNorm((len(rates) + 2) * out_channels, out_channels, 1, RESNET_FORM)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.cat([*(branch(x) for branch in self.branches), self.image(x)], dim=1)
        return torch.relu(self.project(torch.relu(features)))


class ImagePooling(ConvNorm):
    """Features of the image as a whole, at every position.

    (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, RESNET_FORM)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x.mean((2, 3), keepdim=True))
        if self.training and len(x) == 1:
            # A single value per map cannot be normalised by its own deviation.
            norm = self.norm
            pooled = F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            pooled = self.norm(pooled)
        # Equal to bilinear interpolation of one pixel.
        upsampled: Tensor = pooled.expand(-1, -1, *x.shape[-2:])
        return upsampled


def _stages(width: int, output_stride: int, form: Form) -> nn.Sequential:
    stages = nn.Sequential()
    maps, reduction, rate = width, STEM_STRIDE, 1
    for number, (count, stride) in enumerate(zip(LAYERS, STRIDES, strict=True), start=1):
        before = rate
        if reduction == output_stride:
            stride, rate = 1, rate * stride  # noqa: PLW2901
        reduction *= stride
        rates = [rate * step for step in form.grid] if number == len(LAYERS) else [rate] * count
        if form.late:
            rates[0] = before
        blocks = nn.Sequential()
        for block, dilation in enumerate(rates):
            blocks.append(Bottleneck(maps, width << (number - 1), 1 if block else stride, dilation, RESNET_FORM))
            maps = (width << (number - 1)) * Bottleneck.expansion
        stages.add_module(f"stage{number}", blocks)
    return stages
