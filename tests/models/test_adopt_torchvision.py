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

from models.adopt import weights
from models.adopt.torchvision import State

CLASSES = 5
TOLERANCE = 1e-4
SIZE = (64, 96)


class Random(dict[str, Tensor]):
    """A state dict that is filled as a network is walked through: each tensor is drawn when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(11)

    def conv(self, name: str, x: Tensor, out: int, kernel: int, stride: int = 1, bias: bool = False) -> Tensor:
        inputs = x.shape[1] * kernel * kernel
        weight = self._draw(f"{name}.weight", (out, x.shape[1], kernel, kernel), (2 / inputs) ** 0.5)
        return F.conv2d(x, weight, self._draw(f"{name}.bias", (out,), 0.1) if bias else None, stride, kernel // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        maps = (x.shape[1],)
        weight, bias = self._draw(f"{name}.weight", maps, 0.2, 1.0), self._draw(f"{name}.bias", maps, 0.1)
        mean = self._draw(f"{name}.running_mean", maps, 0.1)
        variance = self._draw(f"{name}.running_var", maps, 0.1, 1.0).abs_()
        self[f"{name}.num_batches_tracked"] = torch.tensor(3)
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        weight = self._draw(f"{name}.weight", (out, x.shape[1]), (2 / x.shape[1]) ** 0.5)
        return F.linear(x, weight, self._draw(f"{name}.bias", (out,), 0.1))

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
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_answers_as_its_state_dict_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    state, images, expected = drawn(name)
    torch.save(dict(state), path)
    adopted = weights.adopt(name, path, size=SIZE)
    assert (adopted.library, adopted.pixels) == ("torchvision", "imagenet")
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
