"""`--preview` with weights to start from shows what goes into the network that they make."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convoy.models.data.contact_sheet import SIDE
from convoy.service import cli
from tests.models.pictures import draw


def preview(*arguments: str) -> np.ndarray:
    file = Path(arguments[-1])
    assert cli.run(["train", *arguments[:-1], "--preview", str(file)]) == 0
    return np.asarray(Image.open(file))


def test_colours_are_those_of_the_pictures_whatever_order_and_mean_the_weights_want(tmp_path: Path) -> None:
    data = ["lenet5", "--data", str(draw(tmp_path / "pictures", colour=True))]
    plain = preview(*data, str(tmp_path / "plain.png"))
    assert cli.run(["train", *data, "--epochs", "1", "--output", str(tmp_path / "run")]) == 0
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    content["convoy"].update(channel_order="BGR", mean=[0.5, 0.4, 0.2], std=[0.1, 0.2, 0.3])
    torch.save(content, tmp_path / "bgr.ckpt")
    found = preview(*data, "--from", str(tmp_path / "bgr.ckpt"), str(tmp_path / "bgr.png"))
    assert np.abs(found.astype(int) - plain).max() <= 1  # the rounding of another mean


def test_size_is_that_of_the_weights(tmp_path: Path) -> None:
    data = ["lenet1989", "--data", str(draw(tmp_path / "pictures"))]
    plain = preview(*data, str(tmp_path / "plain.png"))
    run = ["--size", "16x16", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert cli.run(["train", *data, *run]) == 0
    found = preview(*data, "--from", str(tmp_path / "run" / "last.ckpt"), str(tmp_path / "small.png"))
    assert (found != plain).any()
    blocks = found[8 : 8 + SIDE, 8 : 8 + SIDE, 0].reshape(16, SIDE // 16, 16, SIDE // 16)
    assert (blocks == blocks[:, :1, :, :1]).all()  # 16 pixels a side, each drawn as a square
