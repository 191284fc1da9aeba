"""Training settings: defaults per architecture, which a run may override."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from convoy.models.data.augmentation import Augmentation

Optimizer = Literal["sgd", "adamw"]
Precision = Literal["32", "16-mixed", "bf16-mixed"]
Loss = Literal["cross-entropy", "focal", "dice", "cross-entropy+dice"]
ClassWeights = Literal["none", "balanced"]
Schedule = Literal["cosine", "one-cycle", "steps", "constant"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training run. `learning_rate` is the peak value; `patience` is in epochs without improvement;
    `gamma` is the focal loss's parameter; `crop` is the side in pixels of the squares cut from the images, None uses
    whole images; `augmentation` lists the other transformations of the images.

    batch_size  images per batch, summed over all devices
    accumulate  batches whose gradients are summed for one step
    clip        maximum norm of the whole gradient; None: no limit
    warm_up     share of the steps in which the learning rate rises; None: the schedule's own
    ema         decay of the moving average of the weights, per step; None: no average
    keep        number of best checkpoints to keep
    """

    epochs: Annotated[int, Meta(ge=1)]
    optimizer: Optimizer = "adamw"
    learning_rate: Annotated[float, Meta(ge=0, le=1000)] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0, le=1000)] = 0.01
    batch_size: Annotated[int, Meta(ge=1)] = 32
    accumulate: Annotated[int, Meta(ge=1)] = 1
    precision: Precision = "32"
    clip: Annotated[float, Meta(gt=0)] | None = None
    schedule: Schedule = "cosine"
    warm_up: Annotated[float, Meta(ge=0, le=1)] | None = None
    ema: Annotated[float, Meta(gt=0, lt=1)] | None = None
    keep: Annotated[int, Meta(ge=1)] = 1
    patience: Annotated[int, Meta(ge=1)] = 10
    loss: Loss = "cross-entropy"
    gamma: Annotated[float, Meta(ge=0, le=1000)] = 2.0
    class_weights: ClassWeights = "none"
    crop: Annotated[int, Meta(ge=1)] | None = None
    augmentation: Augmentation = Augmentation()
