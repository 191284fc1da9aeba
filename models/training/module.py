"""One network in training, as Lightning asks for it: what a step does, what is measured, what a checkpoint keeps."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MeanMetric

from convoy.models import checkpoint
from convoy.models.checkpoint import Description
from convoy.models.data.augment import Mixed, mixup
from convoy.models.data.dataset import IGNORE, DataSet
from convoy.models.data.loading import Batch, Loader
from convoy.models.evaluation.metrics import LEADING, measures
from convoy.models.recipe import Recipe
from convoy.models.training import losses, resuming, schedules, transfer
from convoy.models.training.distributed import add_up, put_together, several
from convoy.models.training.lone_images import normalise_by_the_run
from convoy.models.training.run import Settings
from convoy.service.metadata import Task

STEPS_APART = 1_000_003  # of the random draws of one seed from those of the next
RANKS_APART = 15_485_863  # of those of one process from those of the next
BETA2 = 0.999  # of AdamW


class Training(pl.LightningModule):
    """The loss, the measures of the task after every epoch, and the description in every checkpoint."""

    def __init__(self, description: Description, network: nn.Module, data: DataSet, settings: Settings) -> None:
        super().__init__()
        self.description = description
        self.noted = resuming.noted(settings, data)
        self.recipe: Recipe = settings.recipe
        self.transfer = settings.transfer
        self.head = frozenset() if settings.transfer is None else transfer.head(description)
        self.seed = settings.seed
        self.augment = data.augment
        self.normalise = description.normalisation()
        self.network = network
        normalise_by_the_run(network)
        self.auxiliary_weight = float(getattr(network, "auxiliary_weight", 0.0))
        self.measures = measures(description.task, len(description.labels))
        # The loss is that of the whole batch in every process already.
        self.train_loss, self.validation_loss = (MeanMetric(sync_on_compute=False) for _ in range(2))
        self.ignore = ignored(description.task)
        weights = class_weights(data) if self.recipe.class_weights == "balanced" else None
        named = self.recipe.loss, self.recipe.gamma, self.ignore, weights, add_up
        self.loss = losses.loss(*named)
        self.training_loss = losses.loss(*named, self.recipe.augmentation.label_smoothing)
        self.best: dict[str, float] = {}  # validation scores of the epoch with the lowest loss
        self.latest: dict[str, float] = {}
        self.taken = {"taken": 0}  # of the epoch that is gone on with
        self.frozen = False
        if self.transfer is not None and self.transfer.freeze_epochs is None:
            self._freeze(0)  # before several processes agree on which gradients there are

    def on_train_start(self) -> None:
        # Here, too, for of an epoch that is gone on with nothing tells the start.
        self._freeze(self.current_epoch)
        # Lightning would do it, but not where the steps were counted before, for the schedule.
        self._loader().load_state_dict(self.taken)

    def on_train_epoch_start(self) -> None:
        self._freeze(self.current_epoch)
        self.train_loss.reset()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        steps = int(self.trainer.estimated_stepping_batches)
        slowness = schedules.momentum(self.recipe.schedule, self.global_step, steps, self.recipe.warm_up)
        if slowness is not None:
            for group in self.trainer.optimizers[0].param_groups:
                group.update({"momentum": slowness} if "momentum" in group else {"betas": (slowness, BETA2)})

    def training_step(self, batch: Batch, index: int) -> Tensor:
        mixed = self.prepared(batch, self.current_epoch * self._batches() + index)
        answer = self.network(mixed.images)
        loss = mixed.share * self._loss(self.training_loss, answer, mixed.targets)
        if mixed.share < 1:
            loss = loss + (1 - mixed.share) * self._loss(self.training_loss, answer, mixed.partners)
        self.train_loss.update(loss.detach(), add_up(self._counted(batch.targets)))
        self.log("loss", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, on_epoch=False)
        scaled: Tensor = loss * self._share_of_step(index)
        return scaled

    def prepared(self, batch: Batch, number: int) -> Mixed:
        """The batch of that number, counted from the start of the run, as the network sees it."""
        # A batch's draws depend on nothing before it, so a resumed run makes the same ones.
        seed = self.seed * STEPS_APART + number
        torch.manual_seed(seed)
        together = several() and (self.augment is not None or self.recipe.augmentation.mixup > 0)
        mixed = self._drawn_together(batch) if together else self._drawn(batch)
        if self.global_rank:
            torch.manual_seed(seed + RANKS_APART * self.global_rank)  # what the network draws is each one's own
        return mixed

    def _drawn(self, batch: Batch) -> Mixed:
        images = self.normalise(batch.images)
        if self.augment is not None:
            images = self.augment(images)
        return mixup(images, batch.targets, self.recipe.augmentation.mixup)

    def _drawn_together(self, batch: Batch) -> Mixed:
        """What draws for a batch as a whole: each process changes all of it, as one would, and takes its part."""
        absent = not self._counted(batch.targets)
        images, own = put_together(batch.images[:0] if absent else batch.images)
        targets, _ = put_together(batch.targets[:0] if absent else batch.targets)
        mixed = self._drawn(Batch(images, targets))
        if absent:
            return Mixed(self.normalise(batch.images), batch.targets, batch.targets, mixed.share)
        return Mixed(mixed.images[own], mixed.targets[own], mixed.partners[own], mixed.share)

    def _loss(
        self, loss: Callable[[Tensor, Tensor], Tensor], answer: Tensor | tuple[Tensor, ...], targets: Tensor
    ) -> Tensor:
        if isinstance(answer, Tensor):
            return loss(answer, targets)
        # Heads in the middle of the network, which are there in training only.
        own, *auxiliary = (self._loss(loss, logits, targets) for logits in answer)
        return own + self.auxiliary_weight * torch.stack(auxiliary).sum()

    def _counted(self, targets: Tensor) -> Tensor:
        """How many images of a batch have anything to count."""
        counted: Tensor = (targets != self.ignore).reshape(len(targets), -1).any(1).sum().float()
        return counted

    def _batches(self) -> int:
        return int(self.trainer.num_training_batches)  # a float to Lightning, for data without an end

    def _share_of_step(self, index: int) -> float:
        """What makes the gradients of a step their mean: Lightning divides by `accumulate` also where the end of an
        epoch leaves fewer batches for the last step."""
        first = index - index % self.recipe.accumulate
        return self.recipe.accumulate / min(self.recipe.accumulate, self._batches() - first)

    def validation_step(self, batch: Batch, _: int) -> None:
        logits = self.network(self.normalise(batch.images))
        loss = self._loss(self.loss, logits, batch.targets)
        counted = self._counted(batch.targets)
        if not several() or counted:  # else there is nothing in this process's part
            self.measures.update(logits, batch.targets)
        self.validation_loss.update(loss, add_up(counted))

    def on_validation_epoch_end(self) -> None:
        scores = {f"validation_{name}": value for name, value in self.measures.compute().items()}
        for name, value in scores.items():
            self.log(name, value, prog_bar=name == f"validation_{LEADING[self.description.task]}")
        self.measures.reset()
        self.log("train_loss", self.train_loss.compute(), prog_bar=True)
        scores["validation_loss"] = self.validation_loss.compute()
        self.log("validation_loss", scores["validation_loss"])
        self.validation_loss.reset()
        self.latest = {name: float(value) for name, value in scores.items()}
        if self.latest["validation_loss"] < self.best.get("validation_loss", math.inf):
            self.best = self.latest

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        rate, decay = recipe.learning_rate, recipe.weight_decay
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(self._groups(), rate, momentum=0.9, nesterov=True, weight_decay=decay)
        else:
            optimizer = torch.optim.AdamW(self._groups(), rate, betas=(0.9, BETA2), weight_decay=decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedules.share_of_rate(recipe.schedule, step, steps, recipe.warm_up)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """The body with its own rate, then the head; all together where nothing was taken over."""
        named = dict(self.network.named_parameters())
        if self.transfer is None:
            return [{"params": list(named.values())}]
        body = [value for name, value in named.items() if name not in self.head]
        rate = self.recipe.learning_rate * self.transfer.body_rate
        return [{"params": body, "lr": rate}, {"params": [named[name] for name in named if name in self.head]}]

    def _freeze(self, epoch: int) -> None:
        if self.transfer is None or self.transfer.freeze == "none":
            return
        until = self.transfer.freeze_epochs
        self.frozen = until is None or epoch < until
        # Several processes share the gradients that were wanted at the start: what thaws later has one all along.
        wanted = not self.frozen or (until is not None and several())
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in self.head or wanted)
        for name, module in self.network.named_modules():
            if isinstance(module, _BatchNorm) and f"{name}.running_mean" not in self.head:
                module.train(not self.frozen)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.frozen:
            for name, parameter in self.network.named_parameters():
                if name not in self.head:
                    parameter.grad = None

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        checkpoint.put(self.description, checkpoint_)
        checkpoint_.update(self.noted)
        checkpoint_["best"], checkpoint_["latest"] = self.best, self.latest
        checkpoint_[checkpoint.EPOCHS] = self._epochs_done()
        checkpoint_["taken"] = self._loader().state_dict()
        checkpoint_["train_loss"] = [float(self.train_loss.mean_value), float(self.train_loss.weight)]

    def _loader(self) -> Loader:
        batches = self.trainer.train_dataloader
        assert isinstance(batches, Loader)
        return batches

    def _epochs_done(self) -> int:
        # Counted before the hooks at the end of an epoch run, where checkpoints are written.
        done: int = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return done

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        self.best, self.latest = checkpoint_["best"], checkpoint_["latest"]
        self.taken = checkpoint_["taken"]
        mean, weight = checkpoint_["train_loss"]
        self.train_loss.mean_value.fill_(mean)
        self.train_loss.weight.fill_(weight)


def class_weights(data: DataSet) -> Tensor:
    """Balanced weights (classes,) of the images, or of the pixels, of the training split."""
    counts = torch.zeros(len(data.labels), dtype=torch.int64)
    split = data.split("train")
    for index in range(len(split)):
        target = torch.as_tensor(split[index][1]).flatten()
        counts += torch.bincount(target[target < len(counts)], minlength=len(counts))
    return losses.balanced(counts)


def ignored(task: Task) -> int:
    """The target that counts for nothing."""
    return IGNORE if task == "segmentation" else -100  # classes may be more than 255
