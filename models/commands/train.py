"""`convoy train`: an architecture, a data set, a folder of checkpoints and logs."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
import typer

from models import registry
from models.commands.options import assignments, parse_range, parse_size
from models.data.augmentation import Augmentation, Flip
from models.data.registry import DATA, resolve, shown
from models.losses import ClassWeights, Loss
from models.preview import preview as save_preview
from models.registry import ARCHITECTURES, Recipe
from models.run import RunFolder, Settings, default_settings
from models.train import train as run

Changed = TypeVar("Changed", Recipe, Augmentation)


def train(
    architecture: Annotated[str, typer.Argument(metavar="ARCHITECTURE", help=f"One of: {', '.join(ARCHITECTURES)}.")],
    data: Annotated[
        str, typer.Option(metavar="DATA", help=f"One of: {', '.join(DATA)}; or a folder of your own pictures.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run.  [default: runs/ARCHITECTURE-DATA]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint to go on from, in its folder.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="How often to go through the data.")] = None,
    optimizer: Annotated[Literal["sgd", "adamw"] | None, typer.Option(help="What updates the weights.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", metavar="X", min=0, help="The highest learning rate.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Pull of the weights towards 0.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", min=1, help="Images a step.")] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Epochs without progress before it stops early.")
    ] = None,
    loss: Annotated[Loss | None, typer.Option(help="What training makes small.")] = None,
    gamma: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Of the focal loss: how little easy ones count.")
    ] = None,
    class_weights: Annotated[ClassWeights | None, typer.Option(help="balanced: rare classes count more.")] = None,
    crop: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train with squares cut out of the images, so many pixels a side."),
    ] = None,
    flip: Annotated[Flip | None, typer.Option(help="Mirror half of the images, and their masks, to that side.")] = None,
    random_crop: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.01, max=1, help="Take a window of at least that share of each image's area."),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="LEAST:LARGEST", help="Enlarge images by a factor, such as 0.8:1.2.")
    ] = None,
    rotate: Annotated[
        float | None, typer.Option(metavar="DEGREES", min=0, max=180, help="Turn images by so much, either way.")
    ] = None,
    colour: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=0.99, help="Change brightness, contrast and saturation by that share."),
    ] = None,
    erase: Annotated[
        float | None, typer.Option(metavar="X", min=0, max=1, help="Share of the images with a rectangle of noise.")
    ] = None,
    mixup: Annotated[
        float | None,
        typer.Option(metavar="ALPHA", min=0, max=10, help="Blend images, and their classes; 0.2 is usual."),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(metavar="X", min=0, max=0.99, help="Share of the target that all classes have.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw images as training would see them, and end.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of the images as the network takes them.  [default: its own]")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An argument of the architecture.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of weights, order and augmentation.")] = None,
) -> None:
    """Train a network. What is not given is as the architecture's recipe has it, or as the resumed run was told."""
    data = resolve(data)
    defaults = _defaults(architecture, data, resume)
    settings = Settings(
        architecture=architecture,
        arguments=registry.merged(architecture, defaults.arguments | assignments(arguments or [])),
        data=data,
        recipe=_changed(
            defaults.recipe,
            epochs=epochs,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            patience=patience,
            loss=loss,
            gamma=gamma,
            class_weights=class_weights,
            crop=crop,
            augmentation=_changed(
                defaults.recipe.augmentation,
                flip=flip,
                random_crop=random_crop,
                scale=None if scale is None else parse_range("--scale", scale),
                rotate=rotate,
                colour=colour,
                erase=erase,
                mixup=mixup,
                label_smoothing=label_smoothing,
            ),
        ),
        seed=defaults.seed if seed is None else seed,
        size=defaults.size if size is None else parse_size(size),
    )
    if preview is not None:
        print(f"{save_preview(settings, preview)} training images as they would be seen: {preview}")
        return
    own = Path("runs") / f"{architecture}-{shown(data)}"
    folder = RunFolder(output or (resume.parent if resume is not None else own))
    try:
        note = run(settings, folder.root, resume)
    except KeyboardInterrupt:
        if folder.last.is_file():
            again = shlex.join(["convoy", "train", architecture, "--data", data, "--resume", str(folder.last)])
            print(f"interrupted; go on with:  {again}", file=sys.stderr)
        raise
    checkpoint = folder.chosen()
    scores = "  ".join(f"{name} {value:.4f}" for name, value in note.validation.items())
    print(f"trained {note.epochs} epochs in {note.seconds:.0f} s; {scores}")
    print(f"checkpoint  {checkpoint}")
    print(f"next        convoy evaluate {checkpoint}")
    print(f"            convoy export {checkpoint} --repository repository")


def _defaults(architecture: str, data: str, resume: Path | None) -> Settings:
    note = RunFolder(resume.parent).read() if resume is not None else None
    if note is not None and (note.settings.architecture, note.settings.data) == (architecture, data):
        return note.settings
    return default_settings(architecture, data)


def _changed(before: Changed, **given: object) -> Changed:
    return msgspec.structs.replace(before, **{name: value for name, value in given.items() if value is not None})
