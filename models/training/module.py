"""The Lightning module of a network in training: steps, metrics, and the contents of checkpoints."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.models import checkpoint
from convoy.models.checkpoint import Description
from convoy.models.data.augmentation import Mixed, mixup
from convoy.models.data.batches import Batch, Loader
from convoy.models.data.dataset import IGNORE, DataSet
from convoy.models.evaluation.metrics import LEADING, measures
from convoy.models.settings import Recipe
from convoy.models.training import losses, resuming, schedules, transfer
from convoy.models.training.distributed import gather, is_parallel, sum_over_processes
from convoy.models.training.run import Settings
from convoy.service.metadata import Task

STEPS_APART = 1_000_003  # distance between the random seeds of successive run seeds
RANKS_APART = 15_485_863  # distance between the random seeds of successive processes
THREADS = "threads"  # of torch, in checkpoints
BETA2 = 0.999  # of AdamW


class Training(pl.LightningModule):
    """Computes the loss, the task's metrics after every epoch, and the description in every checkpoint."""

    def __init__(self, description: Description, network: nn.Module, data: DataSet, settings: Settings) -> None:
        super().__init__()
        self.description = description
        self.record = resuming.record(settings, data)
        self.recipe: Recipe = settings.recipe
        self.transfer = settings.transfer
        self.head = frozenset() if settings.transfer is None else transfer.head(description)
        self.seed = settings.seed
        self.augment = data.augment
        self.normalise = description.normalisation()
        self.network = network
        use_moving_statistics_for_single_values(network)
        self.auxiliary_weight = float(getattr(network, "auxiliary_weight", 0.0))
        self.measures = measures(description.task, len(description.labels))
        # The loss already covers the whole batch in every process.
        self.train_loss, self.validation_loss = Mean(), Mean()
        self.step_loss, self.step_rate = torch.tensor(math.nan), math.nan  # of the last step
        self.ignore = ignore_index(description.task)
        weights = class_weights(data) if self.recipe.class_weights == "balanced" else None
        named = self.recipe.loss, self.recipe.gamma, self.ignore, weights, sum_over_processes
        self.loss = losses.loss(*named)
        self.training_loss = losses.loss(*named, self.recipe.augmentation.label_smoothing)
        self.best: dict[str, float] = {}  # validation scores of the epoch with the lowest loss
        self.latest: dict[str, float] = {}
        self.threads: int | None = None  # of torch in this run; sums depend on it
        self.position = {"taken": 0}  # position in the epoch that is resumed
        self.frozen = False
        if self.transfer is not None and self.transfer.freeze_epochs is None:
            self._freeze(0)  # before processes agree on which gradients exist

    def on_train_start(self) -> None:
        # Also here, because the hook for the start of an epoch does not run when resuming within one.
        self._freeze(self.current_epoch)
        # Lightning restores it too, but not if the steps were counted earlier, for the schedule.
        self._loader().load_state_dict(self.position)

    def on_train_epoch_start(self) -> None:
        self._freeze(self.current_epoch)
        self.train_loss.reset()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        slowness = schedules.momentum(self.recipe.schedule, self.global_step, self.steps, self.recipe.warm_up)
        if slowness is not None:
            for group in self.trainer.optimizers[0].param_groups:
                group.update({"momentum": slowness} if "momentum" in group else {"betas": (slowness, BETA2)})

    def training_step(self, batch: Batch, index: int) -> Tensor:
        mixed = self.prepared(batch, self.current_epoch * self._batches() + index)
        output = self.network(mixed.images)
        loss = mixed.share * self._loss(self.training_loss, output, mixed.targets)
        if mixed.share < 1:
            loss = loss + (1 - mixed.share) * self._loss(self.training_loss, output, mixed.partners)
        self.step_loss, self.step_rate = loss.detach(), self.trainer.optimizers[0].param_groups[-1]["lr"]
        self.train_loss.update(self.step_loss, sum_over_processes(self._counted(batch.targets)))
        scaled: Tensor = loss * self._share_of_step(index)
        return scaled

    def prepared(self, batch: Batch, number: int) -> Mixed:
        """Returns batch `number`, counted from the start of the run, as the network's input."""
        # A batch's random numbers do not depend on earlier batches, so a resumed run draws the same ones.
        seed = self.seed * STEPS_APART + number
        seed_everywhere(seed)
        together = is_parallel() and (self.augment is not None or self.recipe.augmentation.mixup > 0)
        mixed = self._drawn_together(batch) if together else self._drawn(batch)
        if self.global_rank:
            seed_everywhere(seed + RANKS_APART * self.global_rank)  # the network's own draws differ per process
        return mixed

    def _drawn(self, batch: Batch) -> Mixed:
        images = self.normalise(batch.images)
        if self.augment is not None:
            images = self.augment(images)
        return mixup(images, batch.targets, self.recipe.augmentation.mixup)

    def _drawn_together(self, batch: Batch) -> Mixed:
        """Augments the batch as a whole: each process transforms all of it, as a single process would, and returns its
        own part."""
        absent = not self._counted(batch.targets)
        images, own = gather(batch.images[:0] if absent else batch.images)
        targets, _ = gather(batch.targets[:0] if absent else batch.targets)
        mixed = self._drawn(Batch(images, targets))
        if absent:
            return Mixed(self.normalise(batch.images), batch.targets, batch.targets, mixed.share)
        return Mixed(mixed.images[own], mixed.targets[own], mixed.partners[own], mixed.share)

    def _loss(
        self, loss: Callable[[Tensor, Tensor], Tensor], output: Tensor | tuple[Tensor, ...], targets: Tensor
    ) -> Tensor:
        if isinstance(output, Tensor):
            return loss(output, targets)
        # Auxiliary heads, present in training only.
        own, *auxiliary = (self._loss(loss, logits, targets) for logits in output)
        return own + self.auxiliary_weight * torch.stack(auxiliary).sum()

    def _counted(self, targets: Tensor) -> Tensor:
        """Returns the number of images in a batch with any target that counts."""
        counted: Tensor = (targets != self.ignore).reshape(len(targets), -1).any(1).sum().float()
        return counted

    def _batches(self) -> int:
        return int(self.trainer.num_training_batches)  # a float in Lightning, for data without an end

    def _share_of_step(self, index: int) -> float:
        """Returns the factor that makes a step's gradient the mean over its batches: Lightning divides by `accumulate`
        even if fewer batches remain for the last step of an epoch."""
        first = index - index % self.recipe.accumulate
        return self.recipe.accumulate / min(self.recipe.accumulate, self._batches() - first)

    def validation_step(self, batch: Batch, _: int) -> None:
        logits = self.network(self.normalise(batch.images))
        loss = self._loss(self.loss, logits, batch.targets)
        counted = self._counted(batch.targets)
        if not is_parallel() or counted:  # otherwise this process's part is empty
            self.measures.update(logits, batch.targets)
        self.validation_loss.update(loss, sum_over_processes(counted))

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
        self.steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedules.share_of_rate(recipe.schedule, step, self.steps, recipe.warm_up)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Returns parameter groups: the body with its own rate, then the head; a single group without transfer."""
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
        # Processes share only gradients that were required at the start, so parameters that thaw later always have one.
        trains = not self.frozen or (until is not None and is_parallel())
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in self.head or trains)
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
        checkpoint_.update(self.record)
        checkpoint_[THREADS] = self.threads
        checkpoint_["best"], checkpoint_["latest"] = self.best, self.latest
        checkpoint_[checkpoint.EPOCHS] = self._epochs_done()
        checkpoint_["taken"] = self._loader().state_dict()
        checkpoint_["train_loss"] = self.train_loss.state()

    def _loader(self) -> Loader:
        batches = self.trainer.train_dataloader
        assert isinstance(batches, Loader)
        return batches

    def _epochs_done(self) -> int:
        # Checkpoints are written by hooks at the end of an epoch, which run after this count.
        done: int = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return done

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        self.best, self.latest = checkpoint_["best"], checkpoint_["latest"]
        self.position = checkpoint_["taken"]
        self.train_loss.load(*checkpoint_["train_loss"])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        # Lightning's own searches the batch for tensors, which takes longer than a small network's layers.
        return Batch(batch.images.to(device), batch.targets.to(device))


class Mean:
    """A mean of losses, weighted by the number of images. Its sums are on the losses' device."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.load(0.0, 0.0)

    def update(self, loss: Tensor, count: Tensor) -> None:
        self.total, self.count = self.total + loss.detach() * count, self.count + count

    def compute(self) -> Tensor:
        return self.total / self.count

    def state(self) -> list[float]:
        """Returns what `load` accepts."""
        return [float(self.total), float(self.count)]

    def load(self, total: float, count: float) -> None:
        self.total, self.count = torch.tensor(total), torch.tensor(count)


def seed_everywhere(seed: int) -> None:
    """Sets the seed of torch's generators, as `torch.manual_seed` does. Without a GPU, that stores a call for each one
    that could appear later, with the stack of its caller: a millisecond and some memory each time."""
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def class_weights(data: DataSet) -> Tensor:
    """Returns balanced weights (classes,) for the images, or pixels, of the training split."""
    counts = torch.zeros(len(data.labels), dtype=torch.int64)
    split = data.split("train")
    for index in range(len(split)):
        target = torch.as_tensor(split[index][1]).flatten()
        counts += torch.bincount(target[target < len(counts)], minlength=len(counts))
    return losses.balanced(counts)


def ignore_index(task: Task) -> int:
    """Returns the target value that does not count."""
    return IGNORE if task == "segmentation" else -100  # class indices may exceed 255


def use_moving_statistics_for_single_values(network: nn.Module) -> None:
    """Makes batch normalisation use its moving statistics, as in evaluation, if there is one value per channel.

    This happens if a batch, or one process's part of it, is a single image and the maps are 1x1, often in the last
    batch of an epoch. Torch would raise an error in the middle of a run.
    """
    waiting: set[nn.Module] = set()  # modules to return to training mode

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (values,) = inputs
        if module.training and values.numel() == values.shape[1]:
            waiting.add(module.eval())

    def after(module: nn.Module, inputs: tuple[Tensor, ...], normalised: Tensor) -> None:
        if module in waiting:
            waiting.remove(module.train())

    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
