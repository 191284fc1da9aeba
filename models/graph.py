"""The network as it is served, from input bytes or floats to predictions. Training, evaluation and export share it."""

from typing import Literal

import torch
from torch import Tensor, nn

from convoy.service.metadata import Task, TensorInput

ChannelOrder = Literal["RGB", "BGR"]


class Normalisation(nn.Module):
    """`value * scale + offset` is (value / full - mean) / std per channel of (N, C, ...); `sides` follow after C."""

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: list[float], std: list[float], full: int, sides: int) -> None:
        super().__init__()
        middle, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        shape = (-1, *(1,) * sides)
        self.register_buffer("scale", (1 / (full * spread)).float().view(shape), persistent=False)
        self.register_buffer("offset", (-middle / spread).float().view(shape), persistent=False)


class Pixels(Normalisation):
    """Converts pixels to the network's input: (N, H, W, C) uint8 -> (N, C, H, W) float32, (pixel / 255 - mean) / std.

    `mean` and `std` are per channel in the image's order, grey or RGB; `channel_order` is the network's order.
    """

    def __init__(self, mean: list[float], std: list[float], channel_order: ChannelOrder = "RGB") -> None:
        order = slice(None, None, -1) if channel_order == "BGR" else slice(None)
        super().__init__(mean[order], std[order], full=255, sides=2)
        self.reverse = channel_order == "BGR"

    def forward(self, image: Tensor) -> Tensor:
        # Transposing before the cast moves a quarter of the bytes.
        image = image.permute(0, 3, 1, 2)
        if self.reverse:
            image = image.flip(1)
        return image.float() * self.scale + self.offset


class Values(Normalisation):
    """Converts a tensor's values to the network's input: (N, *axes) -> (N, C, *the other axes) float32, normalised as
    (value - mean) / std; bytes are divided by 255 first.

    `mean` and `std` are per channel.
    """

    def __init__(self, mean: list[float], std: list[float], tensor: TensorInput) -> None:
        super().__init__(mean, std, full=255 if tensor.dtype == "uint8" else 1, sides=len(tensor.axes) - 1)
        self.axis = 1 + tensor.channel_axis

    def forward(self, values: Tensor) -> Tensor:
        # The transposition comes before the cast, as in `Pixels`.
        return values.movedim(self.axis, 1).float() * self.scale + self.offset


class Classifier(nn.Module):
    """Served input -> probabilities (N, classes) float32."""

    def __init__(self, normalise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = normalise, network

    def forward(self, served: Tensor) -> Tensor:
        return torch.softmax(self.network(self.normalise(served)), dim=1)


class Segmenter(nn.Module):
    """(N, H, W, C) uint8 -> mask (N, H, W) uint8 and confidence (N, H, W) uint8, the winning probability times 255."""

    def __init__(self, normalise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = normalise, network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalise(image))
        best = logits.amax(dim=1, keepdim=True)
        # The softmax of the winner alone, without dividing for the other classes: 1 / sum(exp(logit - best)).
        confidence = 255 / (logits - best).exp().sum(dim=1)
        return logits.argmax(dim=1).to(torch.uint8), confidence.round().to(torch.uint8)


def served(task: Task, normalise: nn.Module, network: nn.Module) -> nn.Module:
    """Returns the module to export, in eval mode; `normalise` is `Pixels` or `Values`."""
    return (Classifier if task == "classification" else Segmenter)(normalise, network).eval()
