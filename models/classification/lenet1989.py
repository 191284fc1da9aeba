"""The first LeNet (LeCun et al.: Handwritten Digit Recognition with a Back-Propagation Network, NIPS 1989)."""

from torch import Tensor, nn

from convoy.models.classification.lenet5 import PartialConv2d, Subsampling, initialise, scaled_tanh

# Table 1 of the paper: the H2 maps that each of the twelve H3 maps sees. The two halves never meet before the output.
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
    """Logits for one grey image; with 28x28 pixels and ten classes the 2,578 parameters of the paper.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    The paper lays a digit of 16x16 pixels into the middle of 28x28, so that H1 needs no padding. It counts 4,635 units:
    784 pixels, 2,304 + 576 + 768 + 192 of H1 to H4, ten of the output, and the one unit that feeds all biases; and
    98,442 connections, those from the bias unit among them. It leaves the squashing function open: this is the one
    that the authors used from then on. Departures: the output is left unsquashed and trained with cross-entropy, so
    that the scores are logits; H2 and H4 take the mean of four inputs and not their sum, so a coefficient here is four
    times the paper's.
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
