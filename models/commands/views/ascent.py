"""`convoy visualize neurons`, `class` and `dream`: pictures made by gradient ascent."""

from typing import Annotated

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
    from convoy.models.visualize import activation_maximization as responses
    from convoy.models.visualize import selection, sheet, subjects
    from convoy.models.visualize.activation_maximization import Options, ticks

    subject = subjects.load(checkpoint)
    sides = drawing.sides(size, subject)
    climb = drawing.climb(steps, rate, jitter, blur, space, sides, subject.coloured)
    chosen = drawing.layer(layer, subject)
    numbers = selection.channels(channels, chosen.shape[0], chosen.name, NEURONS)
    with drawing.progress(f"neurons of {chosen.name}", ticks(len(numbers), sides, steps)) as tick:
        grown = responses.neurons(subject, chosen, numbers, sides, climb, Options(seed, tick, gif is not None))
    reached = responses.responses(subject, chosen, numbers, grown.images)
    drawing.print_rest(len(numbers), chosen.shape[0], "channels", "--channels")
    silent = [str(number) for number, value in zip(numbers, reached, strict=True) if value <= 0]
    if silent:
        print(f"silent: no response above 0 of channel {', '.join(silent)}")
    heading = drawing.title(subject, f"pictures of maximum response of {chosen.name}")
    drawing.save(path, sheet.draw(heading, [responses.neuron_section(subject, numbers, grown.images, reached)]))
    film = [sheet.draw(heading, [responses.neuron_section(subject, numbers, images, None)]) for images in grown.film]
    drawing.save_film(gif, film)


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
    from convoy.models.visualize import activation_maximization, selection, sheet, subjects
    from convoy.models.visualize.activation_maximization import Options, ticks

    subject = subjects.load(checkpoint)
    labels = subject.description.labels
    numbers = [selection.label(text, labels) for text in class_ or []] or list(range(min(CLASSES, len(labels))))
    sides = drawing.sides(size, subject)
    climb = drawing.climb(steps, rate, jitter, blur, space, sides, subject.coloured)
    with drawing.progress("classes", ticks(len(numbers), sides, steps)) as tick:
        grown = activation_maximization.class_images(
            subject, numbers, sides, climb, Options(seed, tick, gif is not None)
        )
    reached = activation_maximization.confidences(subject, numbers, grown.images)
    for number, value in zip(numbers, reached, strict=True):
        print(f"{labels[number]:<{max(map(len, labels))}}  {100 * value:6.2f} %")
    drawing.print_rest(len(numbers), len(labels), "classes", "--class")
    heading = drawing.title(subject, "pictures of maximum confidence for each class")
    drawing.save(
        path, sheet.draw(heading, [activation_maximization.class_section(subject, numbers, grown.images, reached)])
    )
    film = [
        sheet.draw(heading, [activation_maximization.class_section(subject, numbers, images, None)])
        for images in grown.film
    ]
    drawing.save_film(gif, film)


def dream(
    checkpoint: Checkpoint,
    image: Picture,
    layer: LayerName = None,
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="LIST", help="Such as 0-15,20.  [default: all of the layer]")
    ] = None,
    octaves: Annotated[int, typer.Option(metavar="N", min=1, max=20, help="Number of sizes, from small to full.")] = 4,
    octave_scale: Annotated[
        float, typer.Option(metavar="X", min=1.05, max=10, help="Factor between adjacent sizes.")
    ] = 1.4,
    size: Within = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="In each octave.")] = 20,
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
    climb = drawing.climb(steps, rate, jitter, blur, space, scales[0])
    kept = frames(steps * octaves, gif is not None)
    pictures = dreams(subject, photograph, chosen, numbers, scales, climb, seed)
    with drawing.progress(f"dream of {chosen.name}", steps * octaves) as tick:
        film = [subjects.as_pillow(as_images(each)[0]) for each in filmed(pictures, kept, tick)]
    drawing.save(path, film[-1])
    drawing.save_film(gif, [frame.convert("RGB").resize(film[-1].size, Image.Resampling.BICUBIC) for frame in film])
