"""How many numbers a network consists of, counted as the tables of the field do."""

from typing import NamedTuple

from torch import Tensor, nn


class Count(NamedTuple):
    """`fixed` are the moving statistics of batch normalisation: a mean and a variance a map, not trained but stored."""

    trainable: int
    fixed: int

    @property
    def total(self) -> int:
        return self.trainable + self.fixed


def count(network: nn.Module) -> Count:
    """The numbers in a network; it may be on the meta device."""
    trainable = sum(parameter.numel() for parameter in network.parameters())
    return Count(trainable, sum(statistic.numel() for statistic in moving_statistics(network).values()))


def moving_statistics(network: nn.Module) -> dict[str, Tensor]:
    """The means and variances of batch normalisation, by name."""
    # Its third buffer only counts batches: no answer depends on it.
    return {name: buffer for name, buffer in network.named_buffers() if name.endswith(_STATISTICS)}


_STATISTICS = ("running_mean", "running_var")
