"""`convoy locate`: where in pictures a model's template is."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL.Image
import PIL.ImageDraw
import typer
from numpy.typing import NDArray
from rich.text import Text

from convoy.service import metadata
from convoy.service.client.requests import DEFAULT_TARGET, read_image
from convoy.service.client.results import ServerError
from convoy.service.commands.masks import png
from convoy.service.commands.options import DEADLINE, Deadline, Server, check_png
from convoy.service.commands.picture import Pixels, read_pixels
from convoy.service.commands.tensors import TensorClient
from convoy.service.commands.terminal import console, plain
from convoy.service.errors import BadConfig, BadImage, BadRequest, BadTensor
from convoy.service.metadata import InputSpec

_BOX = (0, 255, 120)  # distinct from all colours of the heat map


def locate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that `convoy template` made.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="JPEG or PNG files.")],
    *,
    server: Server = DEFAULT_TARGET,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="HEAT.png", help="Write the heat map over the picture, with the match marked."
        ),
    ] = None,
    deadline: Deadline = DEADLINE,
) -> None:
    """Ask a server where in pictures a template is: x and y of the upper left pixel, width, height, and a score of at
    most 1."""
    check_png("--out", out)
    if out is not None and len(pictures) > 1:
        raise BadConfig(f"-o {str(out)!r} is one file for {len(pictures)} pictures, want one picture")
    if out is not None and os.path.realpath(out) == os.path.realpath(pictures[0]):
        raise BadConfig(f"-o {str(out)!r} is the picture itself, want another file")
    files = [(str(path), read_image(path)) for path in pictures]
    screen, refused = console(), 0
    with TensorClient(server, deadline) as client:
        spec = _input(client, model)
        for name, data in files:
            try:
                heat_map, row, column, score = _ask(client, model, as_taken(data, spec), out is not None)
            except (BadImage, ServerError) as error:
                if error.reason not in (BadImage.reason, BadTensor.reason):
                    raise
                screen.print(Text.assemble((plain(name), "bold"), "  ", (plain(error.message), "red")), soft_wrap=True)
                refused += 1
                continue
            box = f"x {column}  y {row}  width {spec.min_width}  height {spec.min_height}  score {score:.4f}"
            screen.print(Text.assemble((plain(name), "bold"), "  ", box), soft_wrap=True)
            if out is not None:
                size = (spec.min_height, spec.min_width)
                out.write_bytes(png(drawn(as_taken(data, spec), heat_map, (row, column), size)))
                screen.print(Text.assemble("wrote ", plain(str(out))), soft_wrap=True)
    if refused:
        raise typer.Exit(1)


def as_taken(data: bytes, spec: InputSpec) -> Pixels:
    """An image file as the model's input, (H, W, C): upright, on white. Raises BadImage."""
    pixels = read_pixels(data)
    if pixels is None:
        raise BadImage("cannot be read, want a JPEG or PNG file")
    if spec.colour == "RGB":
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]


def drawn(
    pixels: Pixels, heat_map: NDArray[np.float32], place: tuple[int, int], size: tuple[int, int]
) -> PIL.Image.Image:
    """The picture in grey under its heat map, each value at the centre of its window, with a box around one window.

    pixels    (H, W, C)
    heat_map  (H - h + 1, W - w + 1); drawn dark below 0, then red, yellow, and white at 1
    place     row and column of the window
    size      (h, w) of the window
    """
    (row, column), (height, width) = place, size
    heat = np.zeros(pixels.shape[:2], np.float32)
    middle = slice(height // 2, height // 2 + heat_map.shape[0]), slice(width // 2, width // 2 + heat_map.shape[1])
    heat[middle] = np.clip(heat_map, 0, 1)
    glow = np.clip(3 * heat[..., None] - np.array([0, 1, 2], np.float32), 0, 1)
    grey = pixels.mean(axis=2, keepdims=True) / 255
    image = PIL.Image.fromarray(np.rint(255 * (0.35 * grey + 0.65 * glow)).astype(np.uint8))
    PIL.ImageDraw.Draw(image).rectangle((column, row, column + width - 1, row + height - 1), outline=_BOX)
    return image


def _input(client: TensorClient, model: str) -> InputSpec:
    document = client.document(model)
    if document is None or document.task != "matching":
        task = "has no metadata" if document is None else f"is for {document.task}"
        raise BadRequest(f"model {model!r} {task}, want one that `convoy template` made")
    return document.image


def _ask(
    client: TensorClient, model: str, image: Pixels, with_heat_map: bool
) -> tuple[NDArray[np.float32], int, int, float]:
    outputs = [metadata.LOCATION, metadata.SCORE, *([metadata.HEAT_MAP] if with_heat_map else [])]
    answer = client.infer(model, metadata.IMAGE, image[None], outputs)
    row, column = answer[metadata.LOCATION][0].tolist()
    heat_map = answer[metadata.HEAT_MAP][0] if with_heat_map else np.zeros((0, 0))
    return heat_map.astype(np.float32), row, column, float(answer[metadata.SCORE][0])
