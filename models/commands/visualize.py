"""`convoy visualize`: images of what a trained network has learned, one command per kind."""

import typer

from convoy.models.commands.views.ascent import class_, dream, neurons
from convoy.models.commands.views.evidence import evidence
from convoy.models.commands.views.layers import features, filters, layers
from convoy.service.commands.options import Group, Sections

visualize = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    cls=Group,
    help="Visualise a trained network: filters, feature maps, what it responds to, and evidence for a prediction.",
)
visualize.command(cls=Sections, short_help="List the layers by name")(layers)
visualize.command(cls=Sections, short_help="Draw the filters of a convolution")(filters)
visualize.command(cls=Sections, short_help="Draw layers' feature maps of an image")(features)
visualize.command(cls=Sections, short_help="Optimise pictures for channels of a layer")(neurons)
visualize.command("class", cls=Sections, short_help="Optimise pictures for a class")(class_)
visualize.command(cls=Sections, short_help="Change a photograph to increase a layer's response")(dream)
visualize.command(cls=Sections, short_help="Draw the evidence in an image for a prediction")(evidence)
