"""`convoy visualize evidence`: the parts of an image on which a prediction depends."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convoy.models.analysis.operators import by
from convoy.models.commands.views import options
from convoy.models.commands.views.options import Checkpoint, Output, Picture, Within
from convoy.models.errors import BadView
from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    from torch import Tensor

    from convoy.models.visualize.evidence import Target
    from convoy.models.visualize.sheet import Tile
    from convoy.models.visualize.subjects import Subject

PATCHES = 6  # occluding patches along the shorter side of an image
TILE_SIDE = 224  # pixels on the sheet: details of a map are small


def evidence(
    checkpoint: Checkpoint,
    image: Picture,
    class_: Annotated[
        str | None,
        typer.Option("--class", metavar="LABEL", help="Class of the evidence.  [default: the predicted one]"),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="ROW,COLUMN", help="Segmentation: this pixel only.  [default: all pixels of the class]"),
    ] = None,
    method: Annotated[Literal["both", "occlusion", "activation"], typer.Option(help="Maps to draw.")] = "both",
    patch: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Side of the covering patch, in pixels.  [default: a 6th of the image]"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pixels between patches.  [default: half a patch]")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            metavar="NAME",
            help="Layer of the activation map.  [default: the last with positions; segmentation: the bottleneck]",
        ),
    ] = None,
    size: Within = None,
    output: Output = None,
) -> None:
    """Draw the evidence for a prediction over an image: where covering it lowers the probability (occlusion), and where
    a layer responds for the class (class activation map)."""
    options.check(checkpoint, image, size)
    path = options.destination(output, checkpoint, "evidence")
    pixel = None if at is None else options.numbers(at, "--at")

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import selection, sheet, subjects
    from convoy.models.visualize.evidence import highlighted, target_of
    from convoy.models.visualize.sheet import Section, Tile
    from convoy.models.visualize.subjects import as_pictures

    subject = subjects.load_for_images(checkpoint)
    index = None if class_ is None else selection.label(class_, subject.description.labels)
    pixels = drawing.fitted_image(image, size, subject)
    picture = as_pictures(pixels)
    target = target_of(subject, picture, index, pixel)
    print(f"{target.label}  {100 * target.confidence:.2f} %{_counted(target)}")
    tiles = [Tile(pixels, image.name)]
    if target.where is not None:
        tiles.append(Tile(highlighted(pixels, target.where), "the selected pixels"))
    if method != "activation":
        tiles.append(_occlusion(subject, picture, target, patch, stride))
    if method != "occlusion":
        tiles.append(_activation(subject, picture, target, layer))
    heading = drawing.title(subject, f"evidence for {target.label} ({100 * target.confidence:.1f} %)")
    drawing.save(path, sheet.draw(heading, [Section("red: evidence for it; blue: against it", tiles, side=TILE_SIDE)]))


def _occlusion(
    subject: "Subject", picture: "Tensor", target: "Target", patch: int | None, stride: int | None
) -> "Tile":
    from convoy.models.commands.views import drawing
    from convoy.models.visualize.evidence import occlusion, overlay, places
    from convoy.models.visualize.sheet import Tile
    from convoy.models.visualize.subjects import as_images

    size = (picture.shape[1], picture.shape[2])
    patch = patch or max(1, min(size) // PATCHES)
    stride = stride or max(1, patch // 2)
    if patch > min(size) or stride > patch:
        raise BadConfig(f"--patch {patch} and --stride {stride}, want 1 <= stride <= patch <= {min(size)}")
    with drawing.progress("occlusion", len(places(size, patch, stride))) as tick:
        values = occlusion(subject, picture, target, patch, stride, tick)
    print(
        f"occlusion: covering {patch}x{patch} pixels changes it by {_change(-values.max())} to {_change(-values.min())}"
    )
    return Tile(overlay(as_images(picture)[0], values), f"occlusion, {patch}x{patch}")


def _activation(subject: "Subject", picture: "Tensor", target: "Target", layer: str | None) -> "Tile":
    from convoy.models.visualize import hooks, selection
    from convoy.models.visualize.evidence import activation_map, overlay
    from convoy.models.visualize.sheet import Tile
    from convoy.models.visualize.subjects import as_images

    size, per_pixel = (picture.shape[1], picture.shape[2]), target.where is not None
    layers = hooks.layers(subject, size)
    if layer is None:
        chosen = selection.last_with_places(layers, len(subject.description.labels), per_pixel)
    else:
        chosen = hooks.layer_of(layer, layers)
    if not chosen.is_map:
        raise BadView(f"layer {chosen.name!r} outputs {chosen.shape[0]} numbers, want one that outputs maps")
    values = activation_map(subject, picture, target, chosen)
    print(f"activation map: layer {chosen.name}, {by(chosen.shape[1:])} positions")
    if not values.any():
        print(f"activation map: no evidence in {chosen.name} for {target.label}")
    return Tile(overlay(as_images(picture)[0], values), f"activation map, {chosen.name}")


def _change(value: "Tensor") -> str:
    return f"{100 * float(value):+.1f} %"


def _counted(target: "Target") -> str:
    if target.where is None:
        return ""
    count = int(target.where.sum())
    return "  at one pixel" if count == 1 else f"  in the mean of {count} pixels"
