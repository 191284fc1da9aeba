"""The folder in which a reader of the pages stands, with the files that their commands name: all of them small."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.models.data.dataset import DataSet, SplitName
from convoy.models.data.registry import DATA
from convoy.models.export import comparison
from convoy.service import cli
from tests.models import own_data
from tests.models.conftest import FirstOnes
from tests.models.onnx_import import networks as elsewhere
from tests.service import networks
from tests.service.certificates import Authority
from tests.service.test_vision import colourful
from tools import demo

# How many images of each split are left: drawing them takes most of the time.
COUNTS: dict[SplitName, int] = {"train": 16, "validation": 4, "test": 8}
BUILT_IN = ("digits", "digit-scenes", "aerial", "gait", "motions")
# What readers have done when they come to a page.
DONE = (
    "train lenet5 --data digits",
    "train unet --data digit-scenes",
    "train conv3d --data motions --set width=8 --epochs 8",
    "train conv1d --data gait --set width=32 --epochs 8",
    "export runs/lenet5-digits --repository repository",
    "export runs/unet-digit-scenes --repository repository",
    "profile lenet5 --repository repository",
)
# The settings of the servers that run meanwhile: these commands are not repeated.
PLAIN = "serve --repository repository"
SECURED = "serve --repository repository --set tls.certificate=server.pem --set tls.key=server.key"
# Options that make a command short: they replace those of the page, or are added.
SHORT = {
    "train": ["--epochs", "1"],
    "train --resume": ["--epochs", "2"],
    "train unet --data digit-scenes": ["--epochs", "1", "--set", "width=8", "--set", "depth=2"],
    "bench": ["--seconds", "1"],
    "bench --model lenet5 --steps": [],
    "simulate": ["--requests", "2000"],
    "visualize neurons": ["--steps", "2"],
    "visualize class": ["--steps", "2"],
    "visualize dream": ["--steps", "2", "--octaves", "1"],
}


# Words in whose place stand others: for a smaller network, for less work, or because a network of one epoch sees no 8.
REPLACED = {
    "runs/unet-digit-scenes --repository repository --": "runs/lenet5-digits --repository repository --",
    "--crop 256": "--crop 32",
    "--crop 128": "--crop 32",
    "--size 512x512": "--size 128x128",
    "-o tiles --size 512": "-o tiles --size 16",
    "--steps 100:10,800:10,100:10": "--steps 100:0.3,300:0.3,100:0.3",
    "--rate 500": "--rate 100",
    "--deadline 0.1": "--deadline 30",  # a busy machine might refuse all
    "--deadline 100ms": "--deadline 30",
    "--class 8": "--at 3,3",
    "--model pattern": "--model lenet5",
}


def shortened(words: list[str]) -> list[str]:
    """A command of convoy that says the same in less time."""
    beginnings = [each for each in SHORT if " ".join(words).startswith(each)]
    text = "\0".join(words)
    for those, others in REPLACED.items():
        text = text.replace(those.replace(" ", "\0"), others.replace(" ", "\0"))
    words = text.split("\0")
    if {"--preview", "--find-lr"} & set(words):
        return words
    options = SHORT[max(beginnings, key=len)] if beginnings else []
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option in words and option != "--set":
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def hasten(patch: pytest.MonkeyPatch) -> None:
    """The built-in data sets end after their first images, and exports measure briefly how fast their variants are."""
    for name in BUILT_IN:
        patch.setitem(DATA, name, _shortened(DATA[name]))
    patch.setattr(comparison, "SIZE_SECONDS", 0.02)


def _shortened(load: Callable[[], DataSet]) -> Callable[[], DataSet]:
    def first_ones() -> DataSet:
        data = load()
        return replace(data, split=lambda split: FirstOnes(data.split(split), COUNTS[split]))

    return first_ones


def furnish(folder: Path) -> None:
    """Fills the folder, which is the current one, after `hasten`."""
    _pictures(folder)
    _own_data(folder)
    for text in DONE:
        assert cli.run(shortened(text.split())) == 0, text
    for copy in ("pattern-digits", "structure/fully-46-46-digits-0", "structure/convolutions-16-64-digits-0"):
        shutil.copytree(folder / "runs" / "lenet5-digits", folder / "runs" / copy)
    shutil.copytree(folder / "runs" / "unet-digit-scenes", folder / "runs" / "unet-aerial")
    shutil.copy(folder / "runs" / "lenet5-digits" / "best.ckpt", folder / "resnet50.ckpt")
    repository = folder / "repository"
    # What the server of the pages serves: commands that write into `repository` do not change it.
    served = shutil.copytree(repository, folder / "served")
    networks.save(networks.means("input", 3, 224, 224), served, "resnet50")
    assert cli.run(["template", "waldo.png", "--name", "waldo", "--repository", "served"]) == 0
    shutil.copytree(folder / "runs" / "lenet5-digits", folder / "runs" / "pattern-holiday photos")
    _lone_files(folder)
    elsewhere.from_helper(folder / "animals.onnx")
    (folder / "animals.txt").write_text("ape\nbear\ncat\ndog\neel\n")
    _secrets(folder)


def _lone_files(folder: Path) -> None:
    """Models that are in no repository, and the folder for completions of a shell."""
    exported = folder / "repository" / "lenet5" / "1" / "model.onnx"
    (folder / "exports" / "scenes" / "1").mkdir(parents=True)
    for copy in ("lenet5.onnx", "holiday.onnx", "exports/lenet5.onnx", "exports/scenes/1/model.onnx"):
        shutil.copy(exported, folder / copy)
    (folder / ".local/share/bash-completion/completions").mkdir(parents=True)


def _pictures(folder: Path) -> None:
    images = folder / "demo" / "images"
    images.mkdir(parents=True)
    for digit in demo.DIGITS_SHOWN:
        Image.fromarray(colourful(digit, 32, 32)[..., 0]).save(images / f"digit-{digit}.png")
    for number in range(1, len(demo.SCENES_SHOWN) + 1):
        Image.fromarray(colourful(number, 48, 64)).save(images / f"scene-{number}.png")
    for copy in ("pictures", "photos"):
        shutil.copytree(images, folder / copy)
    for name, (height, width) in {"cat.jpg": (40, 60), "china.png": (90, 120), "crowd.png": (60, 80)}.items():
        noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    city = np.random.default_rng(1).integers(0, 256, (160, 200, 3), np.uint8)
    Image.fromarray(city).save(folder / "city.tif")
    Image.fromarray(np.kron(np.arange(20, dtype=np.uint8).reshape(4, 5) % 3, np.ones((40, 40), np.uint8))).save(
        folder / "city-mask.tif"
    )
    with Image.open(folder / "crowd.png") as crowd:
        crowd.crop((20, 10, 36, 30)).save(folder / "waldo.png")


def _own_data(folder: Path) -> None:
    _classes(folder / "pets", "RGB", "cat", "dog")
    _classes(folder / "holiday photos", "RGB", "lake", "sea")
    (folder / "holiday photos/lake/7.jpg").rename(folder / "holiday photos/lake/IMG 7.jpg")
    _classes(folder / "patterns", "L", "across", "down", "dots")
    own_data.write_idx(folder / "mnist")
    for name in ("land", "streets"):
        _with_masks(folder / name)


def _classes(folder: Path, colour: str, *names: str) -> None:
    """Eight pictures of each class, one brighter than the other."""
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            noise = np.random.default_rng(10 * place + number).integers(0, 90, (32, 32, 3), np.uint8)
            Image.fromarray(noise + np.uint8(80 * place)).convert(colour).save(folder / name / f"{number}.jpg")


def _with_masks(folder: Path) -> None:
    """Twelve pictures of two halves, of the classes 0 and 1."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(12):
        mask = np.zeros((40, 48), np.uint8)
        mask[:, 10 + number :] = 1
        noise = np.random.default_rng(number).integers(0, 90, (40, 48, 3), np.uint8)
        Image.fromarray(noise + 120 * mask[..., None]).save(folder / "images" / f"{number:02}.jpg")
        image = Image.fromarray(mask)
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.save(folder / "masks" / f"{number:02}.png")


def _secrets(folder: Path) -> None:
    authority = Authority(folder)
    pair, own = authority.sign("server"), authority.sign("me")
    files = {"ca.pem": authority.certificate, "server.pem": pair.certificate, "server.key": pair.key}
    for name, file in {**files, "me.pem": own.certificate, "me.key": own.key}.items():
        shutil.copy(file, folder / name)
    digest = hashlib.sha256(b"convoy_token").hexdigest()
    (folder / "callers.toml").write_text(f'somebody = {{ sha256 = "{digest}", models = ["*"] }}\n')
    (folder / "convoy.toml").write_text('[access]\ncallers = "callers.toml"\n')
