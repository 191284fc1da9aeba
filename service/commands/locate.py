"""`convoy locate`: where in pictures a model's template is."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from convoy.service.commands.options import (
    DEADLINE,
    CaFile,
    CertificateFile,
    Deadline,
    KeyFile,
    Server,
    TokenFile,
    UseTls,
    check_png,
    credentials,
    naming_the_nearest,
)
from convoy.service.commands.terminal import console, plain, print_error
from convoy.service.config import DEFAULT_TARGET
from convoy.service.errors import BadConfig, BadImage, BadRequest, BadTensor
from convoy.service.metadata import HEAT_MAP, IMAGE, LOCATION, SCORE, InputSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convoy.service.client.tensors import TensorClient
    from convoy.service.commands.picture import Pixels

# Below this score the best place usually shows something else. The thing itself scores more, also from a JPEG file or
# in other light, but not in another size: only one size is searched.
_LIKELY = 0.7


def locate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model created by `convoy template`.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="Image files.")],
    *,
    server: Server = DEFAULT_TARGET,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="HEAT.png", help="Write the heat map over the picture, with the match marked."
        ),
    ] = None,
    deadline: Deadline = DEADLINE,
) -> None:
    """Locate a template in pictures: x and y of the upper left pixel, width, height, and a score of at most 1.

    Only the template's own size is searched. Below a score of 0.7 it is probably not there.
    """
    check_png("--output", output)
    if output is not None and len(pictures) > 1:
        raise BadConfig(f"--output {str(output)!r} is one file for {len(pictures)} pictures, want one picture")
    if output is not None and os.path.realpath(output) == os.path.realpath(pictures[0]):
        raise BadConfig(f"--output {str(output)!r} is the picture itself, want another file")

    from convoy.service.client.requests import read_image
    from convoy.service.client.results import ServerError
    from convoy.service.client.tensors import TensorClient
    from convoy.service.commands.picture import heat_overlay, png, read_input

    screen, refused = console(), 0
    who = credentials(tls, ca, certificate, key, token_file)
    with naming_the_nearest(model, server, who, deadline), TensorClient(server, deadline, who) as client:
        spec = _input(client, model)
        for name in map(str, pictures):
            try:
                pixels = read_input(read_image(name), spec)
                heat_map, row, column, score = _locate(client, model, pixels, output is not None)
            except (BadImage, ServerError) as error:
                if error.reason not in (BadImage.reason, BadTensor.reason):
                    raise
                print_error(screen, name, error)
                refused += 1
                continue
            box = f"x {column}  y {row}  width {spec.min_width}  height {spec.min_height}  score {score:.4f}"
            doubt = "" if score >= _LIKELY else "  (probably not there)"
            screen.print(Text.assemble((plain(name), "bold"), "  ", box, (doubt, "yellow")), soft_wrap=True)
            if output is not None and heat_map is not None:
                size = (spec.min_height, spec.min_width)
                output.write_bytes(png(heat_overlay(pixels, heat_map, (row, column), size)))
                screen.print(Text.assemble("wrote ", plain(str(output))), soft_wrap=True)
    if refused:
        raise typer.Exit(1)


def _input(client: "TensorClient", model: str) -> InputSpec:
    document = client.document(model)
    if document is None or document.task != "matching":
        task = "has no metadata" if document is None else f"is for {document.task}"
        raise BadRequest(f"model {model!r} {task}, want one created by `convoy template`")
    return document.image


def _locate(
    client: "TensorClient", model: str, image: "Pixels", with_heat_map: bool
) -> "tuple[NDArray[np.float32] | None, int, int, float]":
    outputs = [LOCATION, SCORE, *([HEAT_MAP] if with_heat_map else [])]
    answer = client.infer(model, IMAGE, image[None], outputs)
    row, column = answer[LOCATION][0].tolist()
    return answer[HEAT_MAP][0].astype("float32") if with_heat_map else None, row, column, float(answer[SCORE][0])
