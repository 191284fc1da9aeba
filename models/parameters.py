"""Parameter counts, following the convention of published tables."""

from typing import NamedTuple

from torch import Tensor, nn


class Count(NamedTuple):
    """`fixed` counts the moving statistics of batch normalisation: a mean and a variance per map, not trained."""

    trainable: int
    fixed: int

    @property
    def total(self) -> int:
        return self.trainable + self.fixed


def count(network: nn.Module) -> Count:
    """Returns the number of parameters in a network, which may be on the meta device."""
    trainable = sum(parameter.numel() for parameter in network.parameters())
    return Count(trainable, sum(statistic.numel() for statistic in moving_statistics(network).values()))


def moving_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Returns the running means and variances of batch normalisation, by name."""
    # Its third buffer only counts batches and does not affect the output.
    return {name: buffer for name, buffer in network.named_buffers() if name.endswith(_STATISTICS)}


_STATISTICS = ("running_mean", "running_var")
