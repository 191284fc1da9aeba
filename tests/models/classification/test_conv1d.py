"""The network of waveforms takes any length, and is as large as the paper's."""

import pytest
import torch

from convoy.models.analysis.torch_reader import count
from convoy.models.classification.conv1d import Conv1d


def test_parameters_are_those_of_the_authors_code() -> None:
    """128, 256 and 128 maps behind kernels of 8, 5 and 3, each with four numbers a map of normalisation."""
    with torch.device("meta"):
        network = Conv1d(channels=1, classes=10)
    convolutions = (8 * 1 * 128 + 128) + (5 * 128 * 256 + 256) + (3 * 256 * 128 + 128)
    assert count(network).total == convolutions + 4 * (128 + 256 + 128) + (128 + 1) * 10
    assert count(network).fixed == 2 * (128 + 256 + 128)


@pytest.mark.parametrize("length", [1, 2, 7, 128, 1001])
def test_maps_are_as_long_as_the_waveform(length: int) -> None:
    network = Conv1d(channels=3, classes=5, width=4).eval()
    assert network.features(torch.randn(2, 3, length)).shape == (2, 4, length)
    assert network(torch.randn(2, 3, length)).shape == (2, 5)


def test_answer_is_the_mean_over_the_places_of_a_waveform() -> None:
    """As the network is convolutional, that of a periodic waveform does not change with more periods of it."""
    network = Conv1d(channels=2, classes=3, width=4).eval()
    period = torch.randn(1, 2, 16)
    places = network.features(period.repeat(1, 1, 40))
    assert torch.allclose(network(period.repeat(1, 1, 40)), network.output(places.mean(dim=2)), atol=1e-6)
    inner = places[..., 16:32]  # no padding within its reach
    assert torch.allclose(places[..., 32:48], inner, atol=1e-6)
    assert torch.allclose(network(period.repeat(1, 1, 4000)), network.output(inner.mean(dim=2)), atol=1e-3)
