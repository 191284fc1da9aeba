"""`convoy train`: trains an architecture on a data set; writes a folder of checkpoints and logs."""

import shlex
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from msgspec.structs import replace

from convoy.models import launch, paths, registry
from convoy.models.commands.options import (
    MaskColours,
    MaskValues,
    assignments,
    check_picture,
    checkpoint_of,
    last_of,
    parse_range,
    parse_size,
    with_masks,
)
from convoy.models.data.registry import DATA, display_name, resolve, resolve_replacement
from convoy.models.errors import BadTraining, TrainingStopped
from convoy.models.registry import ARCHITECTURES
from convoy.models.settings import Augmentation, ClassWeights, Flip, Loss, Optimizer, Precision, Recipe, Schedule
from convoy.models.training.run import (
    HIGHEST_SEED,
    ONE,
    Freeze,
    Machine,
    RunFolder,
    Settings,
    Transfer,
    check_crop,
    default_settings,
)
from convoy.models.training.run import read_settings as read_config

Changed = TypeVar("Changed", Recipe, Augmentation)

# Options by their panel in the help.
_weights = partial(typer.Option, rich_help_panel="Initial weights")
_steps = partial(typer.Option, rich_help_panel="Steps")
_losses = partial(typer.Option, rich_help_panel="Loss")
_changes = partial(typer.Option, rich_help_panel="Changes to training images")
_machine = partial(typer.Option, rich_help_panel="This machine; does not affect the result")


def _show_help(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    print(context.get_help())
    name = context.params.get("architecture")
    if name in ARCHITECTURES:
        print(f"\nDefaults of {name}:")
        # A space that is not broken keeps a value beside its option.
        text = "  ".join(option.replace(" ", "\xa0") for option in _recipe_options(name))
        lines = textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        print(lines.replace("\xa0", " "))
    raise typer.Exit


def _recipe_options(name: str) -> list[str]:
    """Returns the options that have the effect of an architecture's recipe."""
    row = ARCHITECTURES[name]
    values = {**msgspec.structs.asdict(row.recipe), **msgspec.structs.asdict(row.recipe.augmentation)}
    values["scale"] = ":".join(f"{factor:g}" for factor in row.recipe.augmentation.scale)
    del values["augmentation"]
    if row.recipe.loss != "focal":
        del values["gamma"]
    sides = registry.sides(row.input)
    if sides is not None:
        values["size"] = "x".join(map(str, sides))
    options = [
        f"--{'lr' if key == 'learning_rate' else key.replace('_', '-')} {value:g}"
        if isinstance(value, float)
        else f"--{key.replace('_', '-')} {value}"
        for key, value in values.items()
        if value is not None
    ]
    return [*options, *(f"--set {key}={value}" for key, value in row.arguments.items() if value != "")]


def train(
    architecture: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARCHITECTURE]",
            show_default=False,
            is_eager=True,  # before --help, which shows its recipe
            help=f"One of: {', '.join(ARCHITECTURES)}. Required without --config and --resume, as is --data.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help=f"One of: {', '.join(DATA)}; or a folder or CSV file of your own pictures."),
    ] = None,
    mask_values: MaskValues = None,
    mask_colours: MaskColours = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The config.toml of a run, whose settings are used.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the run; with a number if it contains one.  [default: runs/ARCHITECTURE-DATA]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT|RUN", help="Resume from there, in its folder.", callback=last_of)
    ] = None,
    source: Annotated[
        Path | None,
        _weights(
            "--from",
            metavar="CHECKPOINT|RUN",
            help="Initial weights; the head for the classes is new.",
            callback=checkpoint_of,
        ),
    ] = None,
    freeze: Annotated[Freeze | None, _weights(help="body: with --from, train only the head.")] = None,
    freeze_epochs: Annotated[
        int | None, _weights(metavar="N", min=1, help="Number of epochs for which the body is frozen.")
    ] = None,
    body_rate: Annotated[
        float | None,
        _weights(metavar="X", min=0, max=1, help="With --from, learning rate of the body as a multiple of --lr."),
    ] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only search a learning rate: writes lr.png and lr.csv.")
    ] = False,
    epochs: Annotated[int | None, _steps(metavar="N", min=1, help="Number of passes over the data.")] = None,
    optimizer: Annotated[Optimizer | None, _steps(help="Optimizer.")] = None,
    learning_rate: Annotated[float | None, _steps("--lr", metavar="X", min=0, help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, _steps(metavar="X", min=0, help="Weight decay.")] = None,
    batch_size: Annotated[int | None, _steps(metavar="N", min=1, help="Images per batch.")] = None,
    accumulate: Annotated[int | None, _steps(metavar="N", min=1, help="Batches per step.")] = None,
    precision: Annotated[Precision | None, _steps(help="Bits of the arithmetic; 16-mixed on CUDA only.")] = None,
    clip: Annotated[float | None, _steps(metavar="X", help="Maximum norm of the gradient.")] = None,
    schedule: Annotated[Schedule | None, _steps(help="Learning rate schedule.")] = None,
    warm_up: Annotated[
        float | None, _steps(metavar="X", min=0, max=1, help="Share of the steps in which the rate rises.")
    ] = None,
    ema: Annotated[
        float | None,
        _steps(metavar="X", help="Decay of a moving average of the weights; 0.999 averages about 1000 steps."),
    ] = None,
    keep: Annotated[
        int | None, _steps(metavar="K", min=1, help="Number of best checkpoints to keep, in best/.")
    ] = None,
    patience: Annotated[
        int | None, _steps(metavar="N", min=1, help="Epochs without improvement before it stops early.")
    ] = None,
    loss: Annotated[Loss | None, _losses(help="Loss function.")] = None,
    gamma: Annotated[float | None, _losses(metavar="X", min=0, help="Focusing parameter of the focal loss.")] = None,
    class_weights: Annotated[ClassWeights | None, _losses(help="balanced: rare classes have larger weights.")] = None,
    crop: Annotated[
        int | None, _changes(metavar="N", min=1, help="Side in pixels of squares cut from the images.")
    ] = None,
    flip: Annotated[Flip | None, _changes(help="Mirror half of the images, and their masks, along that axis.")] = None,
    random_crop: Annotated[
        float | None,
        _changes(metavar="X", min=0.01, max=1, help="Replace images by a window of at least that share of the area."),
    ] = None,
    scale: Annotated[
        str | None, _changes(metavar="LEAST:LARGEST", help="Enlarge images by a factor, such as 0.8:1.2.")
    ] = None,
    rotate: Annotated[
        float | None, _changes(metavar="DEGREES", min=0, max=180, help="Maximum rotation in either direction.")
    ] = None,
    colour: Annotated[
        float | None,
        _changes(metavar="X", min=0, max=0.99, help="Maximum relative change of brightness, contrast, saturation."),
    ] = None,
    erase: Annotated[
        float | None, _changes(metavar="X", min=0, max=1, help="Share of the images with a rectangle of noise.")
    ] = None,
    mixup: Annotated[
        float | None, _changes(metavar="ALPHA", min=0, max=10, help="Blend images and their classes; 0.2 is common.")
    ] = None,
    label_smoothing: Annotated[
        float | None, _losses(metavar="X", min=0, max=0.99, help="Share of the target spread over all classes.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Only draw augmented training images.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the network's input images.  [default: its own]")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An argument of the architecture.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=HIGHEST_SEED, help="Random seed of weights, order and augmentation."),
    ] = None,
    devices: Annotated[
        int, _machine(metavar="N", min=1, help="Processes that train together, each on its own GPU, or on CPUs.")
    ] = ONE.devices,
    workers: Annotated[
        int | None,
        _machine(metavar="N", min=0, help="Threads that prefetch pictures.  [default: one per core for files]"),
    ] = None,
    save_seconds: Annotated[
        float, _machine("--save-every", metavar="SECONDS", min=0, help="Interval of checkpoints within an epoch.")
    ] = ONE.save_seconds,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse data with an unreadable picture instead of skipping it.")
    ] = False,
    show_help: Annotated[
        bool,
        typer.Option(
            "--help", callback=_show_help, help="Show this; after an architecture, with the defaults of its recipe."
        ),
    ] = False,
) -> None:
    """Train a network. Defaults are those of the architecture's recipe, or of the resumed run."""
    options = dict(locals())  # those of the recipe have the names of its fields
    launch.remove_stale_ranks()  # first, so that invalid ranks are reported before any file is read
    if resume is not None:
        _check_start_options(
            {
                "--from": source,
                "--freeze": freeze,
                "--freeze-epochs": freeze_epochs,
                "--body-rate": body_rate,
                "--find-lr": find_lr or None,
                "--preview": preview,
                "--overwrite": overwrite or None,
            }
        )
    if data is not None:
        data = with_masks(data, mask_values, mask_colours)
    elif mask_values is not None or mask_colours is not None:
        raise BadTraining("--mask-values and --mask-colours require --data, whose masks they describe")
    for checkpoint in (resume, source):
        if checkpoint is not None:
            paths.check_checkpoint(checkpoint)
    check_picture(preview)
    changes, sides = assignments(arguments or []), None if size is None else parse_size(size)
    options["scale"] = None if scale is None else parse_range("--scale", scale)
    defaults = _defaults(architecture, data, config, resume)
    architecture, data = defaults.architecture, defaults.data
    registry.check_size(architecture, sides)
    settings = Settings(
        architecture=architecture,
        arguments=registry.merged(architecture, defaults.arguments | changes),
        data=data,
        recipe=_changed(defaults.recipe, options),
        seed=defaults.seed if seed is None else seed,
        size=sides or defaults.size,
        transfer=_transfer(defaults.transfer, source, options),
    )
    if gamma is not None and settings.recipe.loss != "focal":
        raise BadTraining(f"--gamma {gamma:g} requires --loss focal, the loss is {settings.recipe.loss}")
    check_crop(settings)
    if source is not None:
        settings = _with_defaults_of_weights(settings, source, changes, sides)
    if preview is not None:
        from convoy.models.training.preview import preview as save_preview

        print(f"{save_preview(settings, preview, strict)} augmented training images: {preview}")
        return
    before = None if resume is None else RunFolder.of(resume)
    if output is not None:
        folder = RunFolder(output)
    else:
        folder = before or RunFolder(Path("runs") / f"{architecture}-{display_name(data)}")
    machine = Machine(devices=devices, workers=workers, save_seconds=save_seconds, strict=strict)
    if find_lr:
        _find(settings, folder.root, machine)
        return
    continues = before is not None and before.root.resolve() == folder.root.resolve()
    if not (overwrite or continues):
        folder = _unoccupied(folder)
    _train(settings, folder, resume, machine)


def _unoccupied(folder: RunFolder) -> RunFolder:
    """Returns the folder of a new run, which replaces no other."""
    # The other processes of a run start after the first one has written to the folder. They write nothing themselves.
    if not launch.is_first():
        return folder
    free = folder.unoccupied()
    if free is not folder:
        print(
            f"{folder.root} contains a run: this one is written to {free.root} (--overwrite replaces the other one)",
            file=sys.stderr,
            flush=True,
        )
    return free


def _train(settings: Settings, folder: RunFolder, resume: Path | None, machine: Machine) -> None:
    from convoy.models.report.write import PAGE, write_at_end
    from convoy.models.training.distributed import is_first
    from convoy.models.training.train import train as run

    try:
        note = run(settings, folder.root, resume, machine)
    except (KeyboardInterrupt, OSError, RuntimeError, TrainingStopped) as error:
        if folder.last.is_file() and is_first():
            ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended unexpectedly"
            print(f"{ended}; resume with:  convoy train --resume {shlex.quote(str(folder.last))}", file=sys.stderr)
        raise
    if not is_first():
        return
    chosen = folder.chosen()
    scores = "  ".join(f"{name} {value:.4f}" for name, value in note.validation.items())
    planned, patience = settings.recipe.epochs, settings.recipe.patience
    early = f" of {planned}, the last {patience} without a lower loss," if note.epochs < planned else ""
    print(f"trained {note.epochs} epochs{early} in {note.seconds:.0f} s; {scores}")
    print(f"checkpoint  {chosen}  (the lowest validation loss; the last epoch is {folder.last.name})")
    write_at_end(folder.root)
    if (folder.root / PAGE).is_file():
        print(f"report      {folder.root / PAGE}")
    print(f"next        convoy evaluate {shlex.quote(str(chosen))}")
    print(f"            convoy export {shlex.quote(str(chosen))} --repository repository")


def _find(settings: Settings, folder: Path, machine: Machine) -> None:
    from convoy.models.training.distributed import is_first
    from convoy.models.training.lr_finder import find_rate

    result = find_rate(settings, folder, machine)
    if not is_first():
        return
    print(f"suggested   --lr {result.suggested:.2g}")
    print(f"picture     {result.picture}")
    print(f"table       {result.table}")


def _defaults(architecture: str | None, data: str | None, config: Path | None, resume: Path | None) -> Settings:
    """Returns the settings that options override: those of the file, of the resumed run, or of the recipe."""
    before = read_config(config) if config is not None else _settings_before(resume) if resume is not None else None
    if before is not None:
        defaults = _for_other_data(
            before,
            architecture or before.architecture,
            before.data if data is None else resolve_replacement(data, before.data),
        )
    elif architecture is None or data is None:
        missing = "an architecture" if architecture is None else "--data DATA"
        raise BadTraining(f"want {missing}; see 'convoy train --help'")
    else:
        defaults = default_settings(architecture, resolve(data))
    return defaults


def _with_defaults_of_weights(
    settings: Settings, source: Path, changes: dict[str, str], size: tuple[int, int] | None
) -> Settings:
    """Adds the arguments and the size of the network that the weights are from, unless options specify them."""
    from convoy.models.training.transfer import defaults_from

    arguments, own = defaults_from(source, settings.architecture)
    merged = registry.merged(settings.architecture, settings.arguments | arguments | changes)
    return replace(settings, arguments=merged, size=size or own)


def _settings_before(resume: Path) -> Settings | None:
    note = RunFolder.of(resume).read()
    if note is not None:
        return note.settings

    from convoy.models.training.resuming import settings_of

    return settings_of(resume)


def _for_other_data(before: Settings, architecture: str, data: str) -> Settings:
    """Returns the same recipe for other data, or for another architecture with its own arguments and size."""
    if architecture == before.architecture:
        return replace(before, data=data)
    return replace(default_settings(architecture, data), recipe=before.recipe, seed=before.seed)


def _check_start_options(options: dict[str, object]) -> None:
    """Raises BadTraining for an option that only applies at the start of a run."""
    for option, value in options.items():
        if value is not None:
            raise BadTraining(f"{option} applies to new runs, and --resume continues one: want one of them")


def _transfer(before: Transfer | None, source: Path | None, options: dict[str, object]) -> Transfer | None:
    names = ("freeze", "freeze_epochs", "body_rate")
    chosen = {name: options[name] for name in names if options[name] is not None}
    if source is not None:
        before = Transfer(checkpoint=str(source.resolve()))
    if before is None and chosen:
        option = next(iter(chosen)).replace("_", "-")
        raise BadTraining(f"--{option} requires --from CHECKPOINT")
    if "freeze_epochs" in chosen:
        chosen = {"freeze": "body", **chosen}
    elif chosen.get("freeze") == "none":
        chosen["freeze_epochs"] = None  # overrides the file's settings
    after = before and replace(before, **chosen)
    if after is not None and after.freeze == "none" and after.freeze_epochs is not None:
        raise BadTraining("--freeze-epochs requires --freeze body")
    if "body_rate" in chosen and after is not None and after.freeze == "body" and after.freeze_epochs is None:
        raise BadTraining("--body-rate requires a body that is trained, want --freeze-epochs to train it later")
    return after


def _changed(before: Changed, options: dict[str, object]) -> Changed:
    """Returns the settings with the options of their fields' names. Raises BadTraining for a value out of range."""
    changes = {name: options[name] for name in before.__struct_fields__ if options.get(name) is not None}
    if isinstance(before, Recipe):
        changes["augmentation"] = _changed(before.augmentation, options)
    try:
        return msgspec.convert(msgspec.to_builtins(replace(before, **changes)), type(before))
    except msgspec.ValidationError as error:
        problem, _, name = str(error).partition(" - at `$.")
        name = name.rstrip("`")
        option = "lr" if name == "learning_rate" else name.replace("_", "-")
        raise BadTraining(f"--{option} {options.get(name)}: {problem.lower()}") from None
