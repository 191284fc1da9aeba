"""State dicts under torchvision's names give our networks the answers that those names stand for.

torchvision itself cannot be had, so its networks stand here once more, as plain functions of a state dict: written from
the names of its tensors, not from our modules.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convoy.models.pretrained import weights
from convoy.models.pretrained.torchvision import State

CLASSES = 5
TOLERANCE = 1e-4
SIZE = (75, 107)  # the least that one of them takes


class Random(dict[str, Tensor]):
    """A state dict that is filled as a network is walked through: each tensor is drawn when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(11)

    def conv(
        self, name: str, x: Tensor, out: int, kernel: int, stride: int = 1, bias: bool = False, rate: int = 1
    ) -> Tensor:
        weight = self._kernel(name, x, out, kernel, kernel)
        biases = self._draw(f"{name}.bias", (out,), 0.1) if bias else None
        return F.conv2d(x, weight, biases, stride, rate * (kernel // 2), rate)

    def basic_conv(
        self, name: str, x: Tensor, out: int, height: int, width: int, stride: int = 1, padded: bool = True
    ) -> Tensor:
        weight = self._kernel(f"{name}.conv", x, out, height, width)
        x = F.conv2d(x, weight, None, stride, (height // 2, width // 2) if padded else 0)
        return F.relu(self.norm(f"{name}.bn", x, eps=1e-3))

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        maps = (x.shape[1],)
        weight, bias = self._draw(f"{name}.weight", maps, 0.2, 1.0), self._draw(f"{name}.bias", maps, 0.1)
        mean = self._draw(f"{name}.running_mean", maps, 0.1)
        variance = self._draw(f"{name}.running_var", maps, 0.1, 1.0).abs_()
        self[f"{name}.num_batches_tracked"] = torch.tensor(3)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        weight = self._draw(f"{name}.weight", (out, x.shape[1]), (2 / x.shape[1]) ** 0.5)
        return F.linear(x, weight, self._draw(f"{name}.bias", (out,), 0.1))

    def _kernel(self, name: str, x: Tensor, out: int, height: int, width: int) -> Tensor:
        inputs = x.shape[1] * height * width
        return self._draw(f"{name}.weight", (out, x.shape[1], height, width), (2 / inputs) ** 0.5)

    def _draw(self, name: str, shape: tuple[int, ...], spread: float, centre: float = 0.0) -> Tensor:
        assert name not in self, f"{name} is asked for twice"
        self[name] = centre + spread * torch.randn(shape, generator=self.generator)
        return self[name]


def basic(state: Random, name: str, x: Tensor, width: int, stride: int) -> Tensor:
    y = F.relu(state.norm(f"{name}.bn1", state.conv(f"{name}.conv1", x, width, 3, stride)))
    y = state.norm(f"{name}.bn2", state.conv(f"{name}.conv2", y, width, 3))
    return F.relu(y + downsampled(state, name, x, width, stride))


def bottleneck(state: Random, name: str, x: Tensor, width: int, stride: int) -> Tensor:
    y = F.relu(state.norm(f"{name}.bn1", state.conv(f"{name}.conv1", x, width, 1)))
    y = F.relu(state.norm(f"{name}.bn2", state.conv(f"{name}.conv2", y, width, 3, stride)))
    y = state.norm(f"{name}.bn3", state.conv(f"{name}.conv3", y, 4 * width, 1))
    return F.relu(y + downsampled(state, name, x, 4 * width, stride))


def downsampled(state: Random, name: str, x: Tensor, out: int, stride: int) -> Tensor:
    if stride == 1 and x.shape[1] == out:
        return x
    return state.norm(f"{name}.downsample.1", state.conv(f"{name}.downsample.0", x, out, 1, stride))


def resnet(
    block: Callable[[Random, str, Tensor, int, int], Tensor], *layers: int
) -> Callable[[Random, Tensor], Tensor]:
    def answer(state: Random, x: Tensor) -> Tensor:
        x = F.relu(state.norm("bn1", state.conv("conv1", x, 64, 7, 2)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, count in enumerate(layers):
            for index in range(count):
                x = block(state, f"layer{stage + 1}.{index}", x, 64 << stage, 2 if stage and not index else 1)
        return state.linear("fc", x.mean(dim=(2, 3)), CLASSES)

    return answer


def densenet(dot: str, *layers: int) -> Callable[[Random, Tensor], Tensor]:
    """`dot` stands between a layer's part and its number in the files that were published."""

    def answer(state: Random, x: Tensor) -> Tensor:
        x = F.relu(state.norm("features.norm0", state.conv("features.conv0", x, 64, 7, 2)))
        x = F.max_pool2d(x, 3, 2, 1)
        for block, count in enumerate(layers, start=1):
            for layer in range(1, count + 1):
                name = f"features.denseblock{block}.denselayer{layer}"
                y = state.conv(f"{name}.conv{dot}1", F.relu(state.norm(f"{name}.norm{dot}1", x)), 128, 1)
                y = state.conv(f"{name}.conv{dot}2", F.relu(state.norm(f"{name}.norm{dot}2", y)), 32, 3)
                x = torch.cat((x, y), dim=1)
            if block < len(layers):
                name = f"features.transition{block}"
                x = state.conv(f"{name}.conv", F.relu(state.norm(f"{name}.norm", x)), x.shape[1] // 2, 1)
                x = F.avg_pool2d(x, 2)
        x = F.relu(state.norm("features.norm5", x))
        return state.linear("classifier", x.mean(dim=(2, 3)), CLASSES)

    return answer


def vgg(*places: int) -> Callable[[Random, Tensor], Tensor]:
    """`places` are the numbers of the convolutions in `features`; a gap of three has a pool in it."""

    def answer(state: Random, x: Tensor) -> Tensor:
        width, before = 64, -2
        for place in places:
            if place == before + 3:
                x, width = F.max_pool2d(x, 2), min(2 * width, 512)
            x = F.relu(state.conv(f"features.{place}", x, width, 3, bias=True))
            before = place
        x = F.max_pool2d(x, 2).flatten(1)
        x = F.relu(state.linear("classifier.0", x, 4096))
        x = F.relu(state.linear("classifier.3", x, 4096))
        return state.linear("classifier.6", x, CLASSES)

    return answer


def inception_v3(state: Random, x: Tensor) -> Tensor:
    def chain(x: Tensor, name: str, *layers: tuple[str, int, int, int], halve: bool = False) -> Tensor:
        """A layer is the end of its name, its maps, height and width; `halve` is for the last one."""
        for index, (end, *shape) in enumerate(layers):
            if halve and index == len(layers) - 1:
                x = state.basic_conv(name + end, x, *shape, stride=2, padded=False)
            else:
                x = state.basic_conv(name + end, x, *shape)
        return x

    def pooled(x: Tensor, name: str, maps: int) -> Tensor:
        # Zeros of the padding count here, which they do not in Keras.
        return state.basic_conv(f"{name}.branch_pool", F.avg_pool2d(x, 3, 1, 1), maps, 1, 1)

    x = state.basic_conv("Conv2d_1a_3x3", x, 32, 3, 3, stride=2, padded=False)
    x = state.basic_conv("Conv2d_2a_3x3", x, 32, 3, 3, padded=False)
    x = F.max_pool2d(state.basic_conv("Conv2d_2b_3x3", x, 64, 3, 3), 3, 2)
    x = state.basic_conv("Conv2d_3b_1x1", x, 80, 1, 1)
    x = F.max_pool2d(state.basic_conv("Conv2d_4a_3x3", x, 192, 3, 3, padded=False), 3, 2)
    for name, maps in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        branches = [
            chain(x, f"{name}.branch1x1", ("", 64, 1, 1)),
            chain(x, f"{name}.branch5x5", ("_1", 48, 1, 1), ("_2", 64, 5, 5)),
            chain(x, f"{name}.branch3x3dbl", ("_1", 64, 1, 1), ("_2", 96, 3, 3), ("_3", 96, 3, 3)),
            pooled(x, name, maps),
        ]
        x = torch.cat(branches, dim=1)
    single = chain(x, "Mixed_6a.branch3x3", ("", 384, 3, 3), halve=True)
    double = chain(x, "Mixed_6a.branch3x3dbl", ("_1", 64, 1, 1), ("_2", 96, 3, 3), ("_3", 96, 3, 3), halve=True)
    x = torch.cat((single, double, F.max_pool2d(x, 3, 2)), dim=1)
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        long = (("_1", c, 1, 1), ("_2", c, 7, 1), ("_3", c, 1, 7), ("_4", c, 7, 1), ("_5", 192, 1, 7))
        branches = [
            chain(x, f"{name}.branch1x1", ("", 192, 1, 1)),
            chain(x, f"{name}.branch7x7", ("_1", c, 1, 1), ("_2", c, 1, 7), ("_3", 192, 7, 1)),
            chain(x, f"{name}.branch7x7dbl", *long),
            pooled(x, name, 192),
        ]
        x = torch.cat(branches, dim=1)
    single = chain(x, "Mixed_7a.branch3x3", ("_1", 192, 1, 1), ("_2", 320, 3, 3), halve=True)
    long = (("_1", 192, 1, 1), ("_2", 192, 1, 7), ("_3", 192, 7, 1), ("_4", 192, 3, 3))
    x = torch.cat((single, chain(x, "Mixed_7a.branch7x7x3", *long, halve=True), F.max_pool2d(x, 3, 2)), dim=1)
    for name in ("Mixed_7b", "Mixed_7c"):
        single = chain(x, f"{name}.branch3x3", ("_1", 384, 1, 1))
        double = chain(x, f"{name}.branch3x3dbl", ("_1", 448, 1, 1), ("_2", 384, 3, 3))
        branches = [
            chain(x, f"{name}.branch1x1", ("", 320, 1, 1)),
            *(chain(single, f"{name}.branch3x3", layer) for layer in (("_2a", 384, 1, 3), ("_2b", 384, 3, 1))),
            *(chain(double, f"{name}.branch3x3dbl", layer) for layer in (("_3a", 384, 1, 3), ("_3b", 384, 3, 1))),
            pooled(x, name, 192),
        ]
        x = torch.cat(branches, dim=1)
    # The head for training only; whatever it answers is left.
    state.linear("AuxLogits.fc", state.basic_conv("AuxLogits.conv0", x, 8, 1, 1).mean(dim=(2, 3)), CLASSES)
    return state.linear("fc", x.mean(dim=(2, 3)), CLASSES)


NETWORKS = {
    "vgg16": vgg(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg19": vgg(0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "resnet18": resnet(basic, 2, 2, 2, 2),
    "resnet34": resnet(basic, 3, 4, 6, 3),
    "resnet50": resnet(bottleneck, 3, 4, 6, 3),
    "resnet101": resnet(bottleneck, 3, 4, 23, 3),
    "resnet152": resnet(bottleneck, 3, 8, 36, 3),
    "densenet121": densenet(".", 6, 12, 24, 16),
    "densenet169": densenet(".", 6, 12, 32, 32),
    "densenet201": densenet("", 6, 12, 48, 32),
    "inception_v3": inception_v3,
}
PIXELS = {"inception_v3": "symmetric"}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_answers_as_its_state_dict_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    state, images, expected = drawn(name)
    torch.save(dict(state), path)
    adopted = weights.adopt(name, path, size=SIZE)
    assert (adopted.library, adopted.pixels) == ("torchvision", PIXELS.get(name, "imagenet"))
    with torch.inference_mode():
        answer = adopted.network(images)
    apart = (expected.amax(dim=0) - expected.amin(dim=0)).mean()
    assert apart > 0.05 * expected.abs().max()
    assert (answer - expected).abs().max() <= TOLERANCE * apart


def test_two_tensors_changed_for_each_other_are_found_out(tmp_path: Path) -> None:
    state, images, expected = drawn("resnet18")
    first, second = "layer1.0.bn1.running_mean", "layer1.0.bn2.running_mean"
    state[first], state[second] = state[second], state[first]
    torch.save(dict(state), tmp_path / "published.pth")
    with torch.inference_mode():
        answer = weights.adopt("resnet18", tmp_path / "published.pth").network(images)
    assert (answer - expected).abs().max() > 10 * TOLERANCE * expected.abs().max()


def drawn(name: str) -> tuple[State, Tensor, Tensor]:
    """A random state dict, some images, and what the network answers to them."""
    state = Random()
    coarse = torch.randn(4, 3, 4, 6, generator=state.generator) + torch.randn(4, 3, 1, 1, generator=state.generator)
    images = F.interpolate(coarse, SIZE)
    with torch.inference_mode():
        expected = NETWORKS[name](state, images)
    return state, images, expected
