"""FCN for time series (Wang, Yan, Oates: Time Series Classification from Scratch, arXiv 1611.06455, section II.B)."""

from torch import Tensor, nn


class Conv1d(nn.Module):
    """Three convolutions along time and a global mean, for a waveform of several channels and any length.

    (N, channels, T) float32 -> (N, classes)

    `width` is the number of maps of the first and third blocks, 128 in the paper; the second has twice as many.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 128) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *block(channels, width, kernel=8),  # (N, width, T)
            *block(width, 2 * width, kernel=5),  # (N, 2 * width, T)
            *block(2 * width, width, kernel=3),  # (N, width, T)
        )
        self.output = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(x).mean(dim=2))
        return logits


def block(in_channels: int, out_channels: int, kernel: int) -> tuple[nn.Module, ...]:
    """(N, in_channels, T) -> (N, out_channels, T), for any length. An even kernel is padded by one more at the end, as
    in the authors' code."""
    return (
        nn.ConstantPad1d(((kernel - 1) // 2, kernel // 2), 0.0),
        nn.Conv1d(in_channels, out_channels, kernel),
        nn.BatchNorm1d(out_channels),
        nn.ReLU(inplace=True),
    )
