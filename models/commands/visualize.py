"""`convoy visualize`: images of what a trained network has learned, one command per kind."""

import typer

from convoy.models.commands.views.ascent import class_, dream, neurons
from convoy.models.commands.views.evidence import evidence
from convoy.models.commands.views.layers import features, filters, layers

visualize = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Look inside a trained network: what it has learned, what it looks for, what an answer hangs on.",
)
visualize.command(short_help="List the layers by name")(layers)
visualize.command(short_help="Draw the filters of a convolution")(filters)
visualize.command(short_help="Draw what layers answer to an image")(features)
visualize.command(short_help="Grow what channels of a layer answer most to")(neurons)
visualize.command("class", short_help="Grow what is surely of a class to the network")(class_)
visualize.command(short_help="Let a layer deepen what it sees in a photograph")(dream)
visualize.command(short_help="Show what of an image an answer hangs on")(evidence)
