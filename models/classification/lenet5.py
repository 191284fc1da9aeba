"""LeNet-5 (LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998, II.B)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Table I of the paper: the S2 maps connected to each of the sixteen C3 maps.
C3_TABLE = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)


class LeNet5(nn.Module):
    """C1 to F6 of the paper, with 60,000 trainable parameters, and a linear output layer.

    (N, channels, 32, 32) float32 -> (N, classes)

    The paper's output layer measures Euclidean distances from F6 to fixed bitmap codes (RBF units), with its own loss.
    Here it is a linear layer trained with cross-entropy, so that the scores are logits: it adds 85 trainable parameters
    per class, 850 for ten. Another departure does not change the function: S2 and S4 average four inputs instead of
    summing them, so a coefficient here is four times the paper's.
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(channels, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = PartialConv2d(6, C3_TABLE, 5)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, classes)
        for layer in (self.c1, self.c5, self.f6, self.output):
            initialise(layer.weight, fan_in=layer.weight[0].numel())
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, x: Tensor) -> Tensor:
        x = scaled_tanh(self.c1(x))  # (N, 6, 28, 28)
        x = scaled_tanh(self.s2(x))  # (N, 6, 14, 14)
        x = scaled_tanh(self.c3(x))  # (N, 16, 10, 10)
        x = scaled_tanh(self.s4(x))  # (N, 16, 5, 5)
        x = scaled_tanh(self.c5(x)).flatten(1)  # (N, 120)
        x = scaled_tanh(self.f6(x))  # (N, 84)
        logits: Tensor = self.output(x)
        return logits


class Subsampling(nn.Module):
    """The mean of each 2x2 block, times a trainable coefficient, plus a trainable bias, both per map.

    (N, maps, H, W) -> (N, maps, H / 2, W / 2)
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.ones(maps, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) * self.coefficient + self.bias


class PartialConv2d(nn.Module):
    """A convolution whose map i is connected only to the input maps `table[i]`; only those kernels are parameters.

    (N, maps, H, W) -> (N, len(table), H - kernel + 1, W - kernel + 1)

    It runs as one dense convolution: the kernels are placed in a weight that is zero elsewhere, which export folds into
    a constant.
    """

    place: Tensor

    def __init__(self, maps: int, table: tuple[tuple[int, ...], ...], kernel: int) -> None:
        super().__init__()
        connections = sum(len(row) for row in table)
        self.kernels = nn.Parameter(torch.empty(connections, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(len(table)))
        # place[i, j] is the index of the kernel from input map j to map i; the index past the last means no kernel.
        place = torch.full((len(table), maps), connections)
        count = 0
        for i, row in enumerate(table):
            place[i, list(row)] = torch.arange(count, count + len(row))
            initialise(self.kernels[count : count + len(row)], fan_in=len(row) * kernel * kernel)
            count += len(row)
        self.register_buffer("place", place, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The dense (len(table), maps, kernel, kernel) weight."""
        return F.pad(self.kernels, (0, 0, 0, 0, 0, 1))[self.place]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def scaled_tanh(x: Tensor) -> Tensor:
    """A tanh(S x) with A = 1.7159 and S = 2/3, so that f(1) = 1 and f(-1) = -1 (appendix A of the paper)."""
    return 1.7159 * torch.tanh(2 / 3 * x)


def initialise(weight: Tensor, fan_in: int) -> None:
    # Appendix A: uniform between -2.4 / fan_in and 2.4 / fan_in.
    nn.init.uniform_(weight.detach(), -2.4 / fan_in, 2.4 / fan_in)
