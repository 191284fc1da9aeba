"""Training of an architecture on a data set with Lightning: checkpoints, logs, early stopping, resuming."""

import logging
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import msgspec
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from convoy.models import checkpoint, launch, registry, runtime
from convoy.models.analysis.summary import inspect_architecture, useful_threads
from convoy.models.checkpoint import Description
from convoy.models.data.augmentation import check
from convoy.models.data.batches import NOTHING, WHOLE, Allowance, Loader, SameSize, Share, loader
from convoy.models.data.dataset import DataSet
from convoy.models.data.registry import DATA, data_set
from convoy.models.errors import BadTraining, TrainingStopped
from convoy.models.settings import Recipe
from convoy.models.training import distributed, logs, resuming, run, transfer
from convoy.models.training.checkpointing import MONITOR, AtomicCheckpoints, averaging, checkpoints
from convoy.models.training.distributed import environment, is_first, launched, remove_stale_ranks
from convoy.models.training.logs import EpochTable, StepRows, loggers
from convoy.models.training.module import THREADS, Training, ignore_index
from convoy.models.training.progress import Bar, EpochLines, Pace, is_terminal
from convoy.models.training.run import (
    MOST_NAMED,
    ONE,
    Machine,
    Note,
    RunFolder,
    Settings,
    check_crop,
    commit,
    source_digest,
)
from convoy.service.machine import available_bytes, cores
from convoy.service.metadata import InputSpec, Task, TensorInput

KEPT_SHARE = 1 / 4  # of the available memory, for images that are read once only
MAX_WORKERS = 8  # threads; more do not help, because part of the work runs under Python's lock


def train(settings: Settings, output: Path, resume: Path | None = None, machine: Machine = ONE) -> Note:
    """Trains and writes checkpoints, logs, the settings and a note into the folder `output`. Returns the note.

    `resume` is a checkpoint of a run with the same settings: training continues after its step and ends where that run
    would have ended. Each of several processes calls this; the first one writes. Raises BadTraining if architecture,
    data, checkpoint and machine are incompatible, and if the loss is no longer finite; KeyboardInterrupt and
    TrainingStopped after the state of an interrupted run has been saved.
    """
    data, description, network = prepared_run(settings, resume, machine.strict)
    folder = RunFolder(output)
    before = RunFolder.of(resume).read() if resume is not None else None
    seconds_before = before.seconds if before is not None else 0.0
    source = source_digest(settings.architecture)

    training = Training(description, network, data, settings)
    trainer = trainer_of(settings.recipe, data.task, folder, machine)
    if trainer.is_global_zero:
        _prepare(folder, settings, resume)

    def note(complete: bool) -> Note:
        return Note(
            settings=settings,
            source=source,
            complete=complete,
            epochs=trainer.current_epoch,
            seconds=round(seconds_before + time.monotonic() - start, 3),
            checkpoint=folder.best.name,
            validation={name: value for name, value in training.best.items() if math.isfinite(value)},
            left_out=tuple(data.left_out[:MOST_NAMED]),
            left_out_total=len(data.left_out),
        )

    def keep(done: Note) -> Note:
        if trainer.is_global_zero:
            folder.write(done)
        return done

    start = time.monotonic()
    keep(note(complete=False))
    try:
        fit(trainer, training, data, settings, machine, resume)
    except SystemExit:  # Lightning's response to Ctrl-C
        keep(note(complete=False))
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        keep(note(complete=False))
        message = distributed.explained(error, settings.recipe)
        if message is None:
            raise
        raise TrainingStopped(message) from error
    diverged = not math.isfinite(training.latest["validation_loss"])
    done = keep(note(complete=not diverged))
    if diverged and trainer.is_global_zero:
        raise BadTraining(
            f"the validation loss is {training.latest['validation_loss']} after epoch {trainer.current_epoch}: "
            f"want a lower --lr than {settings.recipe.learning_rate:g}, or --clip 1"
        )
    worse = _worse_than_guessing(done, len(data.labels))
    if worse is not None and trainer.is_global_zero:
        print(worse, file=sys.stderr, flush=True)
    return done


def _worse_than_guessing(note: Note, classes: int) -> str | None:
    """Returns a warning if a network has a far higher loss than one that gives all classes the same probability."""
    recipe, guessing = note.settings.recipe, math.log(classes)
    loss = note.validation.get("validation_loss", 0.0)
    if recipe.loss != "cross-entropy" or loss < 2 * guessing:
        return None
    return (
        f"the network has learned nothing: its validation loss is {loss:.4g}, and equal probabilities have "
        f"{guessing:.3g}; want a lower --lr than {recipe.learning_rate:g}, or --clip 1"
    )


def prepared_run(
    settings: Settings, resume: Path | None = None, strict: bool = False
) -> tuple[DataSet, Description, nn.Module]:
    """Returns data, description and network at the start of a run, before a resumed checkpoint is loaded. Raises as
    `train` does."""
    # Lightning logs devices, tips and guesses; Convoy prints what a user must know.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    distributed.report_lost_processes()
    remove_stale_ranks()
    data = data_set(settings.data, strict)
    if settings.transfer is not None:
        expects, _ = checkpoint.load(resume or Path(settings.transfer.checkpoint))
        data = transfer.in_colours_of(data, settings.data, expects, strict)
    pl.seed_everything(settings.seed, verbose=False)
    description, network = describe(settings, data)
    if resume is not None:
        resuming.check(resume, description, settings, data)
        other, _ = checkpoint.load(resume)
        # Transferred weights may have brought their own preprocessing.
        pixels = {name: getattr(other, name) for name in ("mean", "std", "channel_order")}
        return data, msgspec.structs.replace(description, **pixels), network
    if settings.transfer is None:
        return data, description, network
    source = settings.transfer.checkpoint
    transferred = transfer.copy_weights(Path(source), description, network)
    if is_first():
        print(transfer.summary(transferred, source, network), file=sys.stderr, flush=True)
    return data, transferred.description, network


def training_batches(
    description: Description,
    data: DataSet,
    settings: Settings,
    workers: int = 0,
    share: Share = WHOLE,
    allowance: Allowance = NOTHING,
) -> Loader:
    """Returns the batches of the training split."""
    recipe, seed, ignore = settings.recipe, settings.seed, ignore_index(description.task)
    how = recipe.batch_size, seed, recipe.crop, recipe.augmentation, workers, share, ignore, allowance
    return loader(data.split("train"), description.spec, *how)


def validation_batches(
    description: Description,
    data: DataSet,
    settings: Settings,
    workers: int = 0,
    share: Share = WHOLE,
    allowance: Allowance = NOTHING,
) -> Loader:
    """Returns the batches of the validation split, in order."""
    split, size, ignore = data.split("validation"), settings.recipe.batch_size, ignore_index(description.task)
    return loader(split, description.spec, size, workers=workers, share=share, ignore=ignore, allowance=allowance)


def describe(settings: Settings, data: DataSet) -> tuple[Description, nn.Module]:
    """Returns a new network and its description. Raises BadTraining if architecture and data are incompatible,
    ImpossibleLayer if the size is too small for a layer."""
    row = registry.architecture(settings.architecture)
    if row.task != data.task:
        raise BadTraining(f"{settings.architecture} is for {row.task}, {data.name} is data for {data.task}")
    _check_kind(settings, row.input, data)
    check_crop(settings)
    check(settings.recipe.augmentation, data, settings.recipe.loss)
    if settings.size is not None:
        # Checked now for a clear message; the first step would fail with torch's.
        inspect_architecture(settings.architecture, settings.size, len(data.labels), data.channels, settings.arguments)
    size = settings.size if data.tensor is None else registry.sides(data.tensor)
    network = registry.build(settings.architecture, data.channels, len(data.labels), settings.arguments, size)
    description = Description(
        architecture=settings.architecture,
        arguments=settings.arguments,
        task=data.task,
        input=data.colour and registry.input_spec(settings.architecture, network, data.colour, settings.size),
        tensor=data.tensor,
        data=data.name,
        labels=data.labels,
        palette=data.palette,
        mean=data.mean,
        std=data.std,
        commit=commit(),
    )
    return description, network


def _check_kind(settings: Settings, spec: InputSpec | TensorInput, data: DataSet) -> None:
    if _kind(spec) != _kind(data.tensor):
        raise BadTraining(f"{settings.architecture} accepts {_kind(spec)}, {data.name} has {_kind(data.tensor)}")
    if data.tensor is not None and settings.size is not None:
        height, width = settings.size
        raise BadTraining(f"size {height}x{width}: {data.name} has no images, its tensors are not resized")


def _kind(spec: InputSpec | TensorInput | None) -> str:
    if isinstance(spec, TensorInput):
        return f"tensors of {len(spec.axes)} axes, one of them the channels'"
    return "images"


def fit(
    trainer: pl.Trainer,
    training: Training,
    data: DataSet,
    settings: Settings,
    machine: Machine,
    resume: Path | None = None,
) -> None:
    """Trains on the training split, on this process's part of each batch."""
    share = Share(trainer.global_rank, trainer.world_size)
    workers = _workers(settings.data, machine, trainer.num_devices)
    # Each process of this host keeps its own.
    allowance = Allowance(int(KEPT_SHARE * available_bytes()) // trainer.num_devices)
    to_train = training_batches(training.description, data, settings, workers, share, allowance)
    to_validate = validation_batches(training.description, data, settings, workers, share, allowance)
    if resume is not None:
        training.threads = checkpoint.content(resume).get(THREADS)
    runtime.limit_threads(trainer.num_devices, _threads(training, to_train, data, settings, trainer.world_size))
    training.threads = torch.get_num_threads()
    trainer.fit(training, to_train, to_validate, ckpt_path=resume, weights_only=True)


def trainer_of(recipe: Recipe, task: Task, folder: RunFolder, machine: Machine) -> pl.Trainer:
    """Returns Lightning's trainer of a run, with all that it writes and shows."""
    pace = Pace()
    bar = Bar(pace) if is_terminal() else None
    return pl.Trainer(
        max_epochs=recipe.epochs,
        **trainer_options(recipe, machine),
        default_root_dir=folder.root,
        callbacks=[
            pace,
            EpochTable(folder.root),
            StepRows(),
            *([] if recipe.ema is None else [averaging(recipe.ema)]),
            EarlyStopping(MONITOR, patience=recipe.patience),
            EpochLines(task, pace, bar),
            *([] if bar is None else [bar]),
            *checkpoints(folder, recipe.keep, machine.save_seconds),
        ],
        plugins=[AtomicCheckpoints(), *environment()],
        logger=loggers(folder.root),
        enable_progress_bar=False,
    )


def trainer_options(recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """Returns Lightning's options for steps, devices and hosts. Raises BadTraining for what this machine lacks."""
    cuda = torch.cuda.is_available()
    if recipe.precision == "16-mixed" and not cuda:
        raise BadTraining("precision 16-mixed: there is no CUDA device here, want bf16-mixed or 32")
    devices, hosts = launched() or (machine.devices, 1)
    if devices * hosts > recipe.batch_size:
        raise BadTraining(
            f"{devices * hosts} processes: some would have none of the {recipe.batch_size} images of a batch, want "
            "fewer, or a larger --batch-size"
        )
    if cuda and devices > torch.cuda.device_count():
        raise BadTraining(f"{devices} devices: there are {torch.cuda.device_count()} CUDA devices here")
    several = devices * hosts > 1
    if several:
        launch.mark_parent()
    return {
        "accumulate_grad_batches": recipe.accumulate,
        "gradient_clip_val": recipe.clip,
        "precision": recipe.precision,
        "devices": devices,
        "num_nodes": hosts,
        "strategy": "ddp" if several else "auto",
        # Torch supports it on CUDA only; elsewhere each process normalises its own part of a batch.
        "sync_batchnorm": several and cuda,
        "use_distributed_sampler": False,  # the loader divides each batch, in the order of a single process
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }


def _threads(training: Training, batches: Loader, data: DataSet, settings: Settings, processes: int) -> int:
    """Returns the number of threads of a run; the same when it is resumed."""
    if training.threads is not None:
        return training.threads
    row = registry.architecture(settings.architecture)
    size: tuple[int, ...] | None = settings.size
    if registry.sides(row.input) is None and isinstance(batches.sampler, SameSize) and data.tensor is None:
        size = sorted(batches.sampler.sizes, key=math.prod)[len(batches.sampler.sizes) // 2]
    batch = settings.recipe.batch_size // processes
    return useful_threads(
        settings.architecture, size, len(data.labels), data.channels, settings.arguments, max(1, batch)
    )


def _workers(data: str, machine: Machine, processes: int) -> int:
    if machine.workers is not None:
        return machine.workers
    return 0 if data in DATA else max(1, min(MAX_WORKERS, cores() // processes))


def _prepare(folder: RunFolder, settings: Settings, resume: Path | None) -> None:
    folder.root.mkdir(parents=True, exist_ok=True)
    if resume is not None and RunFolder.of(resume).root.resolve() == folder.root.resolve():
        logs.drop_steps(folder.root, checkpoint.steps(resume))
    else:
        folder.clear()
        logs.clear_logs(folder.root)
    run.write_settings(folder.config, settings)
