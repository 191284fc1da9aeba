"""FCN-32s, 16s and 8s: the paper's arithmetic, the paper's padding, and what reaches the class map."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.models.analysis.torch_reader import count
from convoy.models.classification.vgg import VGG
from convoy.models.segmentation.fcn import FCN, BilinearUp
from tests.models.segmenters import settled

STRIDES = (32, 16, 8)
# The paper's network brings scores up without padding and cuts out the image: from the last up-convolution, from the
# scores of the fourth pooling, and from those of the third.
CROPS = {32: (19,), 16: (27, 5), 8: (31, 5, 9)}


def with_the_papers_padding(network: FCN, stride: int, image: Tensor) -> Tensor:
    """The logits where 100 zeros are laid around the image, nothing else is padded, and everything is cropped."""
    height, width = image.shape[-2:]
    x, pooled = F.pad(image, (99, 99, 99, 99)), []  # the first convolution's own padding is the hundredth
    for stack in network.features:
        x = stack(x)
        pooled.append(x)
    x = torch.relu(F.conv2d(x, network.fc6.weight, network.fc6.bias))
    x = network.score(torch.relu(network.fc7(x)))
    last, *others = CROPS[stride]
    for up, score, skip, crop in zip(network.up, network.skip_scores, (pooled[3], pooled[2]), others, strict=False):
        x = F.conv_transpose2d(x, up.weight, stride=2, groups=x.shape[1])
        x = x + score(skip)[..., crop : crop + x.shape[-2], crop : crop + x.shape[-1]]
    x = F.conv_transpose2d(x, network.last_up.weight, stride=stride, groups=x.shape[1])
    return x[..., last : last + height, last : last + width]


@pytest.mark.parametrize("stride", STRIDES)
def test_answers_as_with_the_papers_padding_where_no_padding_is_seen(stride: int) -> None:
    network = settled(FCN(stride, channels=1, classes=3, width=1))
    image = torch.randn(1, 1, 640, 640, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        paper = with_the_papers_padding(network, stride, image)
        # 100 and the image's corner are 99 pixels of padding apart, 3 more than 3 steps of 32: 29 less than a fourth.
        ours = network(image[..., 29:, 29:])
    middle = paper[..., 300:340, 300:340]
    assert float(middle.std()) > 0.01
    torch.testing.assert_close(ours[..., 271:311, 271:311], middle, rtol=1e-4, atol=1e-4)
    beside = ours[..., 270:310, 270:310]
    assert float((beside - middle).abs().max()) > 1e-3  # a grid that lies a pixel beside would have been seen


@pytest.mark.parametrize(("stride", "upsampling"), [(32, 64 * 64), (16, 4 * 4 + 32 * 32), (8, 2 * 4 * 4 + 16 * 16)])
def test_parameters_are_those_of_vgg16_and_the_scores(stride: int, upsampling: int) -> None:
    body = 138_357_544 - (4096 * 1000 + 1000)  # VGG16 without its last layer
    maps = {32: [4096], 16: [4096, 512], 8: [4096, 512, 256]}[stride]
    with torch.device("meta"):
        found = count(FCN(stride, classes=21))
    assert found.total == body + sum(21 * m + 21 for m in maps) + 21 * upsampling
    assert round(found.total / 1e6) == 134  # table 1 of the paper


def test_body_takes_the_weights_of_vgg16() -> None:
    with torch.device("meta"):
        network, vgg = FCN(8), VGG()
    ours = {name: value.shape for name, value in network.state_dict().items() if name.startswith("features.")}
    assert ours == {name: value.shape for name, value in vgg.state_dict().items() if name.startswith("features.")}
    dense = [layer for layer in vgg.classifier if isinstance(layer, nn.Linear)]
    for convolution, layer in zip((network.fc6, network.fc7), dense, strict=False):
        assert convolution.weight.flatten(1).shape == layer.weight.shape


def test_score_sees_404_pixels_and_the_next_one_lies_32_further() -> None:  # table 1 of the paper
    network = FCN(32, channels=1, classes=1, width=1)
    for stack in network.features:
        stack[-1] = nn.AvgPool2d(2)  # through which, unlike a maximum, every pixel is seen
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().clamp_(min=0.01)
    network.eval()
    image = torch.ones(1, 1, 640, 640, requires_grad=True)
    scores: list[Tensor] = []
    network.score.register_forward_hook(lambda *arguments: scores.append(arguments[-1]))
    network(image)
    seen = [
        torch.autograd.grad(scores[0][0, 0, 10, column], image, retain_graph=True)[0][0, 0].sum(0).nonzero().flatten()
        for column in (9, 10)
    ]
    assert [len(columns) for columns in seen] == [404, 404]
    assert int(seen[1][0] - seen[0][0]) == 32


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsampling_starts_as_bilinear_interpolation(factor: int) -> None:
    planes = torch.randn(2, 3, 5, 6)
    up = BilinearUp(3, factor)(planes)
    assert up.shape == (2, 3, 5 * factor, 6 * factor)
    inside = (..., slice(factor, -factor), slice(factor, -factor))  # beyond the border it knows of zeros only
    expected = F.interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up[inside], expected[inside])


@pytest.mark.parametrize("stride", STRIDES)
def test_last_upsampling_stays_bilinear_and_the_others_learn(stride: int) -> None:
    network = FCN(stride, width=2)
    fixed = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert fixed == ["last_up.weight"]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 96), (95, 50)])
def test_class_map_has_the_size_of_the_image(stride: int, size: tuple[int, int]) -> None:
    network = FCN(stride, channels=3, classes=5, width=2).eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_every_skip_reaches_the_output() -> None:
    network = settled(FCN(8, width=2)).train()
    network(torch.randn(2, 3, 70, 50)).square().sum().backward()
    learns = {name: p for name, p in network.named_parameters() if p.requires_grad and name.endswith("weight")}
    assert {"skip_scores.0.weight", "skip_scores.1.weight", "up.1.weight"} <= learns.keys()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learns.values())
