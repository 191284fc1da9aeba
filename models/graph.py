"""The network as it is served: uint8 pixels in, an answer out. What is trained, evaluated and exported meets here."""

from typing import Literal

import torch
from torch import Tensor, nn

from service.metadata import Task

ChannelOrder = Literal["RGB", "BGR"]


class Pixels(nn.Module):
    """Pixels as the network takes them: (N, H, W, C) uint8 -> (N, C, H, W) float32, (pixel / 255 - mean) / std.

    `mean` and `std` are per channel as images have them, grey or RGB; `channel_order` is the one the network wants.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: list[float], std: list[float], channel_order: ChannelOrder = "RGB") -> None:
        super().__init__()
        self.reverse = channel_order == "BGR"
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        if self.reverse:
            scale, offset = scale.flip(0), offset.flip(0)
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("offset", offset.float()[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        # The bytes are moved before they are cast: a quarter of the traffic.
        image = image.permute(0, 3, 1, 2)
        if self.reverse:
            image = image.flip(1)
        return image.float() * self.scale + self.offset


class Classifier(nn.Module):
    """(N, H, W, C) uint8 -> probabilities (N, classes) float32."""

    def __init__(self, pixels: Pixels, network: nn.Module) -> None:
        super().__init__()
        self.pixels, self.network = pixels, network

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.network(self.pixels(image)), dim=1)


class Segmenter(nn.Module):
    """(N, H, W, C) uint8 -> mask (N, H, W) uint8 and confidence (N, H, W) uint8, the winning probability times 255."""

    def __init__(self, pixels: Pixels, network: nn.Module) -> None:
        super().__init__()
        self.pixels, self.network = pixels, network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.pixels(image))
        best = logits.amax(dim=1, keepdim=True)
        # The winner's softmax without the other classes' divisions: 1 / sum(exp(logit - best)).
        confidence = 255 / (logits - best).exp().sum(dim=1)
        return logits.argmax(dim=1).to(torch.uint8), confidence.round().to(torch.uint8)


def served(task: Task, pixels: Pixels, network: nn.Module) -> nn.Module:
    """What is exported, in eval mode."""
    return (Classifier if task == "classification" else Segmenter)(pixels, network).eval()
