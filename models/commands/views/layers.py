"""`convoy visualize layers`, `filters` and `features`: what a network contains, without changes."""

from typing import Annotated

import typer

from convoy.models.analysis.operators import by
from convoy.models.commands.views import options
from convoy.models.commands.views.options import Channels, Checkpoint, Output, Picture, Sides, Within
from convoy.models.errors import BadView

FILTERS, KERNELS, MAPS = 64, 16, 16  # shown by default
SPREAD = 4  # layers whose maps are shown by default


def layers(checkpoint: Checkpoint, size: Sides = None) -> None:
    """List the layers by name, in execution order, with their outputs."""
    options.check(checkpoint, size=size)

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import hooks, selection, subjects

    subject = subjects.load(checkpoint)
    listed = hooks.layers(subject, drawing.sides(size, subject))
    widest, kinds = (
        max(map(len, column)) for column in zip(*((layer.name, layer.kind) for layer in listed), strict=True)
    )
    for layer in listed:
        convolves = "  filters" if selection.filters_of(layer) is not None else ""
        print(f"{layer.name:<{widest}}  {layer.kind:<{kinds}}  {by(layer.shape)}{convolves}")


def filters(
    checkpoint: Checkpoint,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Which layer.  [default: the first with filters]")
    ] = None,
    channels: Channels = None,
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", metavar="LIST", help="Input maps, after the first layer.  [default: the first]"),
    ] = None,
    output: Output = None,
) -> None:
    """Draw the filters of a convolution: of the first in the image's colours, of others a row of kernels for each."""
    options.check(checkpoint)
    path = options.destination(output, checkpoint, "filters")

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import hooks, selection, sheet, subjects
    from convoy.models.visualize.features import by_input, in_colour

    subject = subjects.load(checkpoint)
    all_layers = hooks.layers(subject, subject.size())
    having = [each for each in all_layers if selection.filters_of(each) is not None]
    if not having:
        raise BadView(f"no layer of {subject.name} has filters")
    chosen = having[0] if layer is None else hooks.layer_of(layer, all_layers)
    weight = selection.filters_of(chosen)
    if weight is None:
        raise BadView(f"layer {layer!r} has no filters; layers with filters: {hooks.nearest(chosen.name, having)}")
    first = subject.coloured and chosen is having[0] and weight.shape[1] == len(subject.mean)
    numbers = selection.channels(channels, len(weight), chosen.name, FILTERS if first else KERNELS)
    if first and inputs is not None:
        raise BadView(f"--inputs requires a layer after the first, {chosen.name!r} is drawn in the image's colours")
    if first:
        sections = [in_colour(weight, numbers, subject.description.channel_order == "BGR")]
    else:
        over = selection.inputs(inputs, weight.shape[1], chosen.name, KERNELS)
        sections = by_input(weight, numbers, over)
        drawing.print_rest(len(over), weight.shape[1], "kernels of each filter", "--inputs")
    drawing.print_rest(len(numbers), len(weight), "filters", "--channels")
    what = f"{len(numbers)} of {len(weight)} filters of {chosen.name}, {by(weight.shape[2:])}"
    drawing.save(path, sheet.draw(drawing.title(subject, what), sections))


def features(
    checkpoint: Checkpoint,
    image: Picture,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME", help="Which layer; can be repeated.  [default: four over the depth]"),
    ] = None,
    channels: Channels = None,
    size: Within = None,
    output: Output = None,
) -> None:
    """Draw layers' feature maps of an image, one per channel."""
    options.check(checkpoint, image, size)
    path = options.destination(output, checkpoint, "features")

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import hooks, selection, sheet, subjects
    from convoy.models.visualize.features import features as maps
    from convoy.models.visualize.sheet import Section, Tile

    subject = subjects.load_for_images(checkpoint)
    pixels = drawing.fitted_image(image, size, subject)
    all_layers = hooks.layers(subject, subjects.sides(pixels))
    chosen = [hooks.layer_of(name, all_layers) for name in layer] if layer else selection.spread(all_layers, SPREAD)
    shown = []
    for each in chosen:
        # All numbers of a dense layer need no more space than one map.
        most = MAPS if each.is_map else each.shape[0]
        shown.append((each, selection.channels(channels, each.shape[0], each.name, most)))
        drawing.print_rest(len(shown[-1][1]), each.shape[0], f"maps of {each.name}", "--channels")
    sections = [Section("", [Tile(pixels, image.name)]), *maps(subject, pixels, shown)]
    drawing.save(path, sheet.draw(drawing.title(subject, f"feature maps of {image.name}"), sections))
