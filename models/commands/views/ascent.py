"""`convoy visualize neurons`, `class` and `dream`: pictures made by gradient ascent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image

from convoy.models.commands.views import options
from convoy.models.commands.views.options import (
    Blur,
    Channels,
    Checkpoint,
    Gif,
    InSpace,
    Jitter,
    LayerName,
    Output,
    Picture,
    Rate,
    Seed,
    Sides,
    Steps,
    Within,
)

if TYPE_CHECKING:
    from convoy.models.visualize.activation_maximization import Optimised
    from convoy.models.visualize.subjects import Subject

NEURONS, CLASSES = 16, 20  # shown by default


def neurons(
    checkpoint: Checkpoint,
    layer: LayerName = None,
    channels: Channels = None,
    size: Sides = None,
    steps: Steps = 64,
    rate: Rate = 0.03,
    jitter: Jitter = None,
    blur: Blur = 0.5,
    space: InSpace = "frequency",
    seed: Seed = 0,
    output: Output = None,
    gif: Gif = None,
) -> None:
    """Optimise pictures, from noise, for maximum response of a layer's channels."""
    options.check(checkpoint, size=size)
    path = options.destination(output, checkpoint, "neurons")
    options.check_gif(gif)

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import activation_maximization, selection, subjects

    subject = subjects.load(checkpoint)
    sides = drawing.sides(size, subject)
    settings = drawing.ascent_settings(steps, rate, jitter, blur, space, sides, subject.coloured)
    chosen = drawing.layer(layer, subject)
    numbers = selection.channels(channels, chosen.shape[0], chosen.name, NEURONS)
    total = activation_maximization.ticks(len(numbers), sides, steps)
    with drawing.progress(f"neurons of {chosen.name}", total) as tick:
        how = activation_maximization.Options(seed, tick, film=gif is not None)
        optimised = activation_maximization.neurons(subject, chosen, numbers, sides, settings, how)
    reached = activation_maximization.responses(subject, chosen, numbers, optimised.images)
    drawing.print_rest(len(numbers), chosen.shape[0], "channels", "--channels")
    silent = [str(number) for number, value in zip(numbers, reached, strict=True) if value <= 0]
    if silent:
        print(f"silent: no response above 0 of channel {', '.join(silent)}")
    names, values = [str(number) for number in numbers], [f"{value:.3g}" for value in reached]
    title = f"pictures of maximum response of {chosen.name}"
    _draw(subject, title, ("channel", "its response"), names, values, optimised, path, gif)


def class_(
    checkpoint: Checkpoint,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="LABEL", help="Which class; can be repeated.  [default: the first 20]"),
    ] = None,
    size: Sides = None,
    steps: Steps = 64,
    rate: Rate = 0.03,
    jitter: Jitter = None,
    blur: Blur = 0.5,
    space: InSpace = "frequency",
    seed: Seed = 0,
    output: Output = None,
    gif: Gif = None,
) -> None:
    """Optimise pictures, from noise, for maximum confidence of a class, and report that confidence."""
    options.check(checkpoint, size=size)
    path = options.destination(output, checkpoint, "class")
    options.check_gif(gif)

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import activation_maximization, selection, subjects

    subject = subjects.load(checkpoint)
    labels = subject.description.labels
    numbers = [selection.label(text, labels) for text in class_ or []] or list(range(min(CLASSES, len(labels))))
    sides = drawing.sides(size, subject)
    settings = drawing.ascent_settings(steps, rate, jitter, blur, space, sides, subject.coloured)
    total = activation_maximization.ticks(len(numbers), sides, steps)
    with drawing.progress("classes", total) as tick:
        how = activation_maximization.Options(seed, tick, film=gif is not None)
        optimised = activation_maximization.class_images(subject, numbers, sides, settings, how)
    reached = activation_maximization.confidences(subject, numbers, optimised.images)
    for number, value in zip(numbers, reached, strict=True):
        print(f"{labels[number]:<{max(map(len, labels))}}  {100 * value:6.2f} %")
    drawing.print_rest(len(numbers), len(labels), "classes", "--class")
    names, values = [labels[number] for number in numbers], [f"{100 * value:.2f} %" for value in reached]
    title = "pictures of maximum confidence for each class"
    _draw(subject, title, ("class", "confidence"), names, values, optimised, path, gif)


def dream(
    checkpoint: Checkpoint,
    image: Picture,
    layer: LayerName = None,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="LIST", help="Channels, such as 0-15,20.  [default: all of the layer]"),
    ] = None,
    octaves: Annotated[int, typer.Option(metavar="N", min=1, max=20, help="Number of sizes, from small to full.")] = 4,
    octave_scale: Annotated[
        float, typer.Option(metavar="X", min=1.05, max=10, help="Factor between adjacent sizes.")
    ] = 1.4,
    size: Within = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Number of steps in each octave.")] = 20,
    rate: Rate = 0.01,
    jitter: Jitter = None,
    blur: Blur = 0.0,
    space: InSpace = "pixels",
    seed: Seed = 0,
    output: Output = None,
    gif: Gif = None,
) -> None:
    """Change a photograph to increase a layer's response, at several sizes. The picture has the photograph's size and
    the network's colours."""
    options.check(checkpoint, image, size)
    path = options.destination(output, checkpoint, "dream")
    options.check_gif(gif)

    from convoy.models.commands.views import drawing
    from convoy.models.visualize import selection, subjects
    from convoy.models.visualize.activation_maximization import filmed, frames
    from convoy.models.visualize.dream import dream as dreams
    from convoy.models.visualize.dream import sizes
    from convoy.models.visualize.subjects import as_images

    subject = subjects.load_for_images(checkpoint)
    photograph = drawing.photograph(subjects.read_image(image, subject), size)
    chosen = drawing.layer(layer, subject)
    numbers = selection.channels(channels, chosen.shape[0], chosen.name, chosen.shape[0])
    scales = sizes(subjects.sides(photograph), octaves, octave_scale)
    settings = drawing.ascent_settings(steps, rate, jitter, blur, space, scales[0])
    kept = frames(steps * octaves, gif is not None)
    pictures = dreams(subject, photograph, chosen, numbers, scales, settings, seed)
    with drawing.progress(f"dream of {chosen.name}", steps * octaves) as tick:
        film = [subjects.as_pillow(as_images(each)[0]) for each in filmed(pictures, kept, tick)]
    drawing.save(path, film[-1])
    drawing.save_film(gif, [frame.convert("RGB").resize(film[-1].size, Image.Resampling.BICUBIC) for frame in film])


def _draw(
    subject: "Subject",
    title: str,
    heading: tuple[str, str],
    names: list[str],
    values: list[str],
    optimised: "Optimised",
    path: Path,
    gif: Path | None,
) -> None:
    """Saves the pictures with their names and the values that they reached, and the film with the names."""
    from convoy.models.commands.views import drawing
    from convoy.models.visualize.activation_maximization import section
    from convoy.models.visualize.sheet import draw

    title, captions = drawing.title(subject, title), [": ".join(pair) for pair in zip(names, values, strict=True)]
    drawing.save(path, draw(title, [section(subject, ": ".join(heading), captions, optimised.images)]))
    drawing.save_film(gif, [draw(title, [section(subject, heading[0], names, each)]) for each in optimised.film])
