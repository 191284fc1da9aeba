"""Small data sets and untrained checkpoints, so that a test trains or exports in a second."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convoy.models import checkpoint
from convoy.models.data.builtin import digits, scenes
from convoy.models.data.dataset import DataSet, Split, SplitName, Target
from convoy.models.data.registry import DATA
from convoy.models.settings import Recipe
from convoy.models.training.run import Settings
from convoy.models.training.train import describe

COUNTS: dict[SplitName, int] = {"train": 96, "validation": 48, "test": 72}


@dataclass
class FirstOnes:
    """The first images of a split."""

    split: Split
    count: int

    def __len__(self) -> int:
        return self.count

    def size(self, index: int) -> tuple[int, int]:
        return self.split.size(index)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        return self.split[index]


def _shortened(load: Callable[[], DataSet], name: str) -> Callable[[], DataSet]:
    data = load()
    return lambda: replace(data, name=name, split=lambda split: FirstOnes(data.split(split), COUNTS[split]))


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny-digits` and `tiny-scenes`: the first images of each split of the real ones."""
    for load, name in ((digits.load, "tiny-digits"), (scenes.load, "tiny-scenes")):
        monkeypatch.setitem(DATA, name, _shortened(load, name))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """What a test lets torch use ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def settings(architecture: str = "lenet5", data: str = "tiny-digits", seed: int = 0, **recipe: object) -> Settings:
    """A short run: two epochs unless told otherwise, a small U-Net."""
    arguments = {"width": 4, "depth": 2} if architecture == "unet" else {}
    changed = msgspec.structs.replace(Recipe(epochs=2, batch_size=32), **recipe)
    return Settings(architecture=architecture, arguments=arguments, data=data, recipe=changed, seed=seed)


def untrained(folder: Path, architecture: str = "lenet5", data: str = "tiny-digits", seed: int = 0) -> Path:
    """A checkpoint of fresh weights."""
    torch.manual_seed(seed)
    description, network = describe(settings(architecture, data), DATA[data]())
    with torch.no_grad():  # so that a graph which forgets a bias is found out
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.2, 0.2)
    path = folder / f"{architecture}.ckpt"
    checkpoint.save(path, description, network)
    return path
