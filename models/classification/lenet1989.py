"""The first LeNet (LeCun et al.: Handwritten Digit Recognition with a Back-Propagation Network, NIPS 1989)."""

from torch import Tensor, nn

from convoy.models.classification.lenet5 import PartialConv2d, Subsampling, initialise, scaled_tanh

# Table 1 of the paper: the H2 maps connected to each of the twelve H3 maps. The two halves meet only in the output.
H3_TABLE = (
    (0,),
    (0, 1),
    (0, 1),
    (1,),
    (0, 1),
    (0, 1),
    (2,),
    (2, 3),
    (2, 3),
    (3,),
    (2, 3),
    (2, 3),
)


class LeNet1989(nn.Module):
    """Two convolutions with subsampling and one dense layer; 2,578 parameters for 28x28 pixels and ten classes.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    The paper centres a digit of 16x16 pixels in 28x28, so that H1 needs no padding. It counts 4,635 units: 784 pixels,
    2,304 + 576 + 768 + 192 in H1 to H4, ten in the output, and one bias unit; and 98,442 connections, including those
    from the bias unit. It does not state the squashing function; this is the one the authors used from then on.
    Departures: the output is not squashed and is trained with cross-entropy, so that the scores are logits; H2 and H4
    average four inputs instead of summing them, so a coefficient here is four times the paper's.
    """

    def __init__(self, channels: int = 1, classes: int = 10, size: tuple[int, int] = (28, 28)) -> None:
        super().__init__()
        height, width = (((side - 4) // 2 - 4) // 2 for side in size)
        if min(height, width) < 1:
            raise ValueError(f"size {size[0]}x{size[1]}, want at least 16x16")
        self.h1 = nn.Conv2d(channels, 4, 5)
        self.h2 = Subsampling(4)
        self.h3 = PartialConv2d(4, H3_TABLE, 5)
        self.h4 = Subsampling(12)
        self.output = nn.Linear(12 * height * width, classes)
        for layer in (self.h1, self.output):
            initialise(layer.weight, fan_in=layer.weight[0].numel())
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, x: Tensor) -> Tensor:
        x = scaled_tanh(self.h1(x))  # (N, 4, 24, 24)
        x = scaled_tanh(self.h2(x))  # (N, 4, 12, 12)
        x = scaled_tanh(self.h3(x))  # (N, 12, 8, 8)
        x = scaled_tanh(self.h4(x))  # (N, 12, 4, 4)
        logits: Tensor = self.output(x.flatten(1))
        return logits
