"""Train one architecture on one data set with Lightning: checkpoints, logs, early stopping, resuming."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from models import checkpoint, losses, registry, threads
from models.checkpoint import Description
from models.data.augment import Mixed, mixup
from models.data.augmentation import check
from models.data.batches import loader
from models.data.dataset import DataSet
from models.data.loading import Batch, Loader
from models.data.registry import data_set
from models.errors import BadTraining
from models.inspect import inspect_architecture
from models.metrics import IGNORE, LEADING, measures
from models.registry import Recipe
from models.run import Note, RunFolder, Settings, commit, source_digest
from service.metadata import InputSpec, Task, TensorInput

STEPS_APART = 1_000_003  # of the random draws of one seed from those of the next
WARM_UP = 0.1  # share of the steps in which the learning rate rises; it then falls along a cosine


def train(settings: Settings, output: Path, resume: Path | None = None) -> Note:
    """Train, leaving checkpoints, logs and a note in the folder `output`; returns the note.

    `resume` is a checkpoint of a run of the same settings: it goes on behind that epoch and ends where the run would
    have ended. Raises BadTraining where architecture, data and checkpoint do not go together, and
    KeyboardInterrupt after an interrupted run has been put away.
    """
    _quieten()
    threads.limit()
    data = data_set(settings.data)
    pl.seed_everything(settings.seed, verbose=False)
    description, network = describe(settings, data)
    folder = RunFolder(output)
    if resume is not None:
        _check_resumed(description, settings, resume)
    folder.root.mkdir(parents=True, exist_ok=True)
    before = folder.read() if resume is not None else None
    seconds_before = before.seconds if before is not None else 0.0
    source = source_digest(settings.architecture)

    training = Training(description, network, data, settings)
    trainer = _trainer(settings.recipe, data.task, folder)

    def note(complete: bool) -> Note:
        stopped_early = trainer.current_epoch < settings.recipe.epochs
        return Note(
            settings=settings,
            source=source,
            complete=complete,
            epochs=trainer.current_epoch,
            seconds=round(seconds_before + time.monotonic() - start, 3),
            checkpoint=(folder.best if stopped_early else folder.last).name,
            validation=training.best if stopped_early else training.latest,
        )

    start = time.monotonic()
    folder.write(note(complete=False))
    recipe = settings.recipe
    train_batches = training_batches(description, data, settings)
    validation_batches = loader(data.split("validation"), description.spec, recipe.batch_size)
    try:
        trainer.fit(training, train_batches, validation_batches, ckpt_path=resume, weights_only=True)
    except SystemExit:  # which is what Lightning makes of Ctrl-C
        folder.write(note(complete=False))
        raise KeyboardInterrupt from None
    done = note(complete=True)
    folder.write(done)
    return done


def training_batches(description: Description, data: DataSet, settings: Settings) -> Loader:
    """The training split as its epochs go through it."""
    recipe = settings.recipe
    return loader(
        data.split("train"), description.spec, recipe.batch_size, settings.seed, recipe.crop, recipe.augmentation
    )


def describe(settings: Settings, data: DataSet) -> tuple[Description, nn.Module]:
    """A fresh network and all that its checkpoints will say. Raises BadTraining where the two do not go together,
    ImpossibleLayer where the size leaves nothing for a layer."""
    row = registry.architecture(settings.architecture)
    if row.task != data.task:
        raise BadTraining(f"{settings.architecture} is for {row.task}, {data.name} is data for {data.task}")
    _check_kind(settings, row.input, data)
    if settings.recipe.crop is not None and (row.task != "segmentation" or registry.sides(row.input)):
        raise BadTraining(f"crop {settings.recipe.crop}: {settings.architecture} takes whole images")
    check(settings.recipe.augmentation, data, settings.recipe.loss)
    if settings.size is not None:
        # Now, and in words: the first step would end with torch's.
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


def _check_kind(settings: Settings, wanted: InputSpec | TensorInput, data: DataSet) -> None:
    if _kind(wanted) != _kind(data.tensor):
        raise BadTraining(f"{settings.architecture} takes {_kind(wanted)}, {data.name} has {_kind(data.tensor)}")
    if data.tensor is not None and settings.size is not None:
        height, width = settings.size
        raise BadTraining(f"size {height}x{width}: {data.name} has no images, its tensors stay as they are")


def _kind(spec: InputSpec | TensorInput | None) -> str:
    if isinstance(spec, TensorInput):
        return f"tensors of {len(spec.axes)} axes, one of them the channels'"
    return "images"


class Training(pl.LightningModule):
    """The loss, the measures of the task after every epoch, and the description in every checkpoint."""

    def __init__(self, description: Description, network: nn.Module, data: DataSet, settings: Settings) -> None:
        super().__init__()
        self.description = description
        self.recipe: Recipe = settings.recipe
        self.seed = settings.seed
        self.augment = data.augment
        self.normalise = description.normalisation()
        self.network = network
        self.auxiliary_weight = float(getattr(network, "auxiliary_weight", 0.0))
        self.measures = measures(description.task, len(description.labels))
        ignore = IGNORE if description.task == "segmentation" else -100  # classes may be more than 255
        weights = class_weights(data) if self.recipe.class_weights == "balanced" else None
        self.loss = losses.loss(self.recipe.loss, self.recipe.gamma, ignore, weights)
        smoothing = self.recipe.augmentation.label_smoothing
        self.training_loss = losses.loss(self.recipe.loss, self.recipe.gamma, ignore, weights, smoothing=smoothing)
        self.best: dict[str, float] = {}  # validation scores of the epoch with the lowest loss
        self.latest: dict[str, float] = {}

    def training_step(self, batch: Batch, _: int) -> Tensor:
        mixed = self.prepared(batch, self.global_step)
        answer = self.network(mixed.images)
        loss = mixed.share * self._loss(self.training_loss, answer, mixed.targets)
        if mixed.share < 1:
            loss = loss + (1 - mixed.share) * self._loss(self.training_loss, answer, mixed.partners)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(mixed.images))
        return loss

    def prepared(self, batch: Batch, step: int) -> Mixed:
        """A batch as the network sees it in that step."""
        # A step's draws depend on nothing before it, so a resumed run makes the same ones.
        torch.manual_seed(self.seed * STEPS_APART + step)
        images = self.normalise(batch.images)
        if self.augment is not None:
            images = self.augment(images)
        return mixup(images, batch.targets, self.recipe.augmentation.mixup)

    def _loss(
        self, loss: Callable[[Tensor, Tensor], Tensor], answer: Tensor | tuple[Tensor, ...], targets: Tensor
    ) -> Tensor:
        if isinstance(answer, Tensor):
            return loss(answer, targets)
        # Heads in the middle of the network, which are there in training only.
        own, *auxiliary = (self._loss(loss, logits, targets) for logits in answer)
        return own + self.auxiliary_weight * torch.stack(auxiliary).sum()

    def validation_step(self, batch: Batch, _: int) -> None:
        logits = self.network(self.normalise(batch.images))
        loss = self._loss(self.loss, logits, batch.targets)
        self.measures.update(logits, batch.targets)
        self.log("validation_loss", loss, batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        scores = {f"validation_{name}": value for name, value in self.measures.compute().items()}
        for name, value in scores.items():
            self.log(name, value, prog_bar=name == f"validation_{LEADING[self.description.task]}")
        self.measures.reset()
        scores["validation_loss"] = self.trainer.callback_metrics["validation_loss"]
        self.latest = {name: float(value) for name, value in scores.items()}
        if self.latest["validation_loss"] < self.best.get("validation_loss", math.inf):
            self.best = self.latest

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        rate, decay = recipe.learning_rate, recipe.weight_decay
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), rate, weight_decay=decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        checkpoint.put(self.description, checkpoint_)
        checkpoint_["best"], checkpoint_["latest"] = self.best, self.latest

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        self.best, self.latest = checkpoint_["best"], checkpoint_["latest"]


def class_weights(data: DataSet) -> Tensor:
    """Balanced weights (classes,) of the images, or of the pixels, of the training split."""
    counts = torch.zeros(len(data.labels), dtype=torch.int64)
    split = data.split("train")
    for index in range(len(split)):
        target = torch.as_tensor(split[index][1]).flatten()
        counts += torch.bincount(target[target < len(counts)], minlength=len(counts))
    return losses.balanced(counts)


def share_of_rate(step: int, steps: int) -> float:
    """The share of the learning rate that a step trains with: up in a line, down along a cosine, never 0."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return max(1e-3, 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class EpochLines(Callback):
    """A line an epoch on stderr, for where a moving bar would be noise."""

    def __init__(self, task: Task) -> None:
        self.shown = ("train_loss", "validation_loss", f"validation_{LEADING[task]}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = trainer.callback_metrics
        text = "  ".join(f"{name} {float(scores[name]):.4f}" for name in self.shown)
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}", file=sys.stderr, flush=True)


class Bar(RichProgressBar):
    """A moving bar on stderr, with the loss and the score that matters, without the logger's version number."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in shown.items() if name != "v_num"}


def _trainer(recipe: Recipe, task: Task, folder: RunFolder) -> pl.Trainer:
    bar = sys.stderr.isatty()
    return pl.Trainer(
        max_epochs=recipe.epochs,
        devices=1,
        default_root_dir=folder.root,
        callbacks=[
            _checkpoint(folder.best, monitor="validation_loss"),
            _checkpoint(folder.last),
            EarlyStopping("validation_loss", patience=recipe.patience),
            Bar() if bar else EpochLines(task),
        ],
        logger=[CSVLogger(folder.root, name="csv"), TensorBoardLogger(folder.root, name="tensorboard")],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def _checkpoint(path: Path, monitor: str | None = None) -> ModelCheckpoint:
    # Without a monitor: every epoch. ModelCheckpoint's own save_last skips the epochs that are not the best so far.
    return ModelCheckpoint(
        path.parent,
        filename=path.stem,
        monitor=monitor,
        save_on_train_epoch_end=True,
        enable_version_counter=False,  # a second run in the same folder replaces the first
    )


def _check_resumed(description: Description, settings: Settings, resume: Path) -> None:
    other, _ = checkpoint.load(resume)
    for name in ("architecture", "arguments", "data", "labels", "input"):
        was, wanted = getattr(other, name), getattr(description, name)
        if was != wanted:
            raise BadTraining(f"{resume} was trained with {name} {was!r}, this run has {wanted!r}")
    done, epochs = checkpoint.epochs(resume), settings.recipe.epochs
    if done >= epochs:
        raise BadTraining(
            f"{resume} has {done} epochs of {epochs}: nothing is left to train, want --epochs above {done}"
        )


def _quieten() -> None:
    # Lightning announces devices, tips and each of its guesses; what a user must know stands in our own lines.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
