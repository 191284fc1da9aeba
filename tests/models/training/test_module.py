"""A batch of a lone image is trained with, also where a network normalises one number a channel."""

import torch
from torch import nn

from convoy.models.training.module import use_moving_statistics_for_single_values


def test_one_number_a_channel_is_normalised_by_the_moving_statistics() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3)
    layer(torch.randn(16, 3, 4, 4) * 2 + 1)  # moves them
    lone = torch.randn(1, 3, 1, 1, requires_grad=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    use_moving_statistics_for_single_values(layer)
    answer = layer(lone)
    answer.sum().backward()
    wanted = (lone - before["running_mean"][:, None, None]) / (before["running_var"][:, None, None] + layer.eps).sqrt()
    torch.testing.assert_close(answer, wanted)
    assert lone.grad is not None
    assert layer.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_other_batches_are_normalised_by_themselves() -> None:
    torch.manual_seed(0)
    plain, hooked = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    use_moving_statistics_for_single_values(hooked)
    for shape in ((1, 3, 4, 4), (2, 3, 1, 1), (1, 3, 1, 2)):
        images = torch.randn(shape)
        assert torch.equal(hooked(images), plain(images))
    assert torch.equal(hooked.running_mean, plain.running_mean)
