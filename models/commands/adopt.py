"""`convoy adopt`: publishes an ONNX file made elsewhere as a version of a model, with image input and metadata."""

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convoy.models import paths
from convoy.models.commands.options import check_exists, parse_size, print_step
from convoy.models.errors import BadNetworkFile
from convoy.models.export import publish
from convoy.models.pretrained.registry import MEANING, PREPROCESSING, PixelForm
from convoy.models.settings import Colour, ImportOptions, Layout, Tail, Task
from convoy.service.metadata import Fit, InputSpec

if TYPE_CHECKING:
    from convoy.models.onnx_import.onnx_file import OnnxFile, Tensor


def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file; it is not changed.")],
    repository: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the model repository.  [default: none; only describes the file]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model.  [default: the file's name]")
    ] = None,
    task: Annotated[Task | None, typer.Option(help="Task of the network.  [default: determined by its shape]")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes, one a line.  [default: class 0, class 1, ..]"),
    ] = None,
    palette: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Colours of the classes: #rrggbb, one a line, or a PNG with a palette."),
    ] = None,
    colour: Annotated[
        Colour | None, typer.Option(help="Colour channels that the network expects.  [default: RGB or L]")
    ] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="Order of the input's axes.  [default: determined by its shape]")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of its images, if the file accepts several.")
    ] = None,
    fit: Annotated[
        Fit | None, typer.Option(help="How an image is fitted to that size.  [default: stretch; pad for any size]")
    ] = None,
    uint8_front: Annotated[
        bool,
        typer.Option(
            "--uint8-front",
            help="Put the change of layout, the cast and (pixel * scale - mean) / std before the network.",
        ),
    ] = False,
    mean: Annotated[
        str | None,
        typer.Option(metavar="X[,X,X]", help="Mean per channel, red first, of pixels times scale.  [default: 0]"),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="X[,X,X]", help="Standard deviation, likewise.  [default: 1]")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="X", help="Factor of the pixels, such as 1 or 1/127.5.  [default: 1/255]")
    ] = None,
    preprocessing: Annotated[
        PixelForm | None,
        typer.Option(
            help="Instead of the four options above, how the network expects pixels: "
            + "; ".join(f"{name} is {meaning}" for name, meaning in MEANING.items())
            + "."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output to serve, if there are several.  [default: the first]"),
    ] = None,
    tail: Annotated[
        Tail,
        typer.Option(
            help="What is appended to the network: none if it outputs probabilities, or a class for each pixel; "
            "sigmoid if one number represents two classes."
        ),
    ] = "none",
) -> None:
    """Show an ONNX file made elsewhere, and with --repository adopt it: serve it over Classify or Segment."""
    paths.check_onnx(file)
    check_exists(labels, palette)
    if repository is not None:
        publish.check_name(name or _name(file))
    means, deviations = _numbers("--mean", mean), _numbers("--std", std)
    if preprocessing is not None:
        for option, value in (("--mean", mean), ("--std", std), ("--scale", scale)):
            if value is not None:
                raise BadNetworkFile(f"--preprocessing {preprocessing} and {option} {value}: want one of the two")
        form = PREPROCESSING[preprocessing]
        uint8_front, means, deviations = True, form.mean, form.std
        colour = colour or ("BGR" if form.order == "BGR" else None)
    options = ImportOptions(
        task=task,
        labels=labels,
        palette=palette,
        colour=colour,
        layout=layout,
        size=None if size is None else parse_size(size),
        fit=fit,
        output=output,
        uint8_front=uint8_front,
        mean=means,
        std=deviations,
        scale=None if scale is None else _number("--scale", scale),
        tail=tail,
    )

    from convoy.models.onnx_import.adopt import adopt as run
    from convoy.models.onnx_import.adopt import chosen
    from convoy.models.onnx_import.onnx_file import load

    original = load(file)
    for line in _description(original, chosen(original, output)):
        print(line)
    if repository is None:
        front = "" if original.input.dtype == "uint8" and original.layout == "NHWC" else " --uint8-front"
        print(f"next      convoy adopt {shlex.quote(str(file))} --repository DIR{front}")
        print("          and what the file does not contain, such as --labels, --mean, --std, --tail: see --help")
        return
    adopted = run(original, file.name, repository, name or _name(file), options, print_step)
    document = adopted.document
    parity = document.parity
    assert parity is not None
    agreement = parity.top1_agreement if parity.mask_agreement is None else parity.mask_agreement
    confident = adopted.confident
    print(f"task      {document.task}, {len(document.labels)} classes, {_input_text(document.image)}")
    differ = f"probabilities differ by at most {parity.max_abs_difference:.1e}, " if confident else ""
    print(
        f"checked   against the file on {parity.images} random images: {differ}{agreement:.4%} of predictions are equal"
    )
    if not confident:
        print("          masks only: a network that ends with argmax has no confidence")
    print(
        f"file      {adopted.path}  ({adopted.path.stat().st_size / 1024:.0f} KiB, version {adopted.path.parent.name})"
    )
    print(f"next      convoy serve --repository {shlex.quote(str(repository))}")


def _name(file: Path) -> str:
    """Returns the file's name, reduced to the characters that a model's name may contain."""
    return re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-")[:64]


def _description(original: "OnnxFile", output: "Tensor") -> list[str]:
    from convoy.models.onnx_import.onnx_file import likely_task

    lines = [
        f"input     {original.input}, {original.layout or 'layout not determined by its shape'}",
        f"output    {output}",
        *(f"          left out: {other}" for other in original.outputs if other is not output),
        f"opset     {original.opset}, made by {original.model.producer_name or 'unknown'}",
    ]
    if original.external_bytes:
        lines.append(f"external  {original.external_bytes / 1024:,.0f} KiB of external data, folded in")
    lines.append(f"likely    {likely_task(output) or 'not determined by the shape of its output'}")
    return lines


def _input_text(spec: InputSpec) -> str:
    size = "any size" if spec.height is None else f"{spec.height}x{spec.width}"
    multiple = f", sides padded to multiples of {spec.multiple}" if spec.multiple > 1 else ""
    return f"{spec.colour} images of {size} ({spec.fit}{multiple})"


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(_number(option, part) for part in text.split(","))


def _number(option: str, text: str) -> float:
    above, _, below = text.partition("/")
    try:
        number = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise BadNetworkFile(f"{option} {text!r}, want numbers such as 0.485 or 1/255")
    return number
