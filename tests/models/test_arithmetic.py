"""Sizes behind convolution and pooling are those that the layers themselves leave."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from convoy.models.arithmetic import output_size

LAYERS = nn.Sequential(
    OrderedDict(
        conv=nn.Conv2d(1, 2, (5, 3), stride=(3, 2), padding=(0, 1)),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(3, stride=2, padding=1),
        last=nn.Conv2d(2, 1, 2),
    )
)


@pytest.mark.parametrize("size", [(40, 17), (41, 18), (39, 64), (11, 9)])
def test_size_is_that_of_the_layers_answer(size: tuple[int, int]) -> None:
    assert output_size(LAYERS, size) == LAYERS(torch.zeros(1, 1, *size)).shape[2:]


def test_window_that_does_not_fit_is_refused_by_its_layer() -> None:
    with pytest.raises(ValueError, match="last has a 2x2 window, and of the input 1x5 left"):
        output_size(LAYERS, (5, 17))
    with pytest.raises(ValueError, match="conv has a 5x3 window"):
        output_size(LAYERS, (4, 17))
