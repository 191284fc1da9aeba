"""Settings of commands, checked before torch is imported: of training, of export in reduced precision, of the import of
ONNX files, and of gradient ascent."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from convoy.service.metadata import Calibration, Fit

Optimizer = Literal["sgd", "adamw"]
Precision = Literal["32", "16-mixed", "bf16-mixed"]
Loss = Literal["cross-entropy", "focal", "dice", "cross-entropy+dice"]
ClassWeights = Literal["none", "balanced"]
Schedule = Literal["cosine", "one-cycle", "steps", "constant"]
Flip = Literal["none", "horizontal", "vertical", "both"]
Factor = Annotated[float, Meta(ge=0.1, le=10)]

Task = Literal["classification", "segmentation"]
Layout = Literal["NCHW", "NHWC"]
Colour = Literal["RGB", "BGR", "L"]
Tail = Literal["softmax", "sigmoid", "argmax", "none"]
Size = tuple[int, int]

Space = Literal["pixels", "frequency"]


class Augmentation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Augmentation of training images; the defaults do not change them.

    flip             mirrors half of the images, along each axis that is named
    random_crop      minimum share of the area of a random window, in the image's proportions, that replaces the image
    scale            minimum and maximum factor by which the content is enlarged about the centre
    rotate           maximum degrees, in either direction
    colour           maximum share by which brightness, contrast and saturation each change, in either direction
    erase            share of the images in which a rectangle becomes noise (Zhong et al. 2017, arXiv 1708.04896)
    mixup            alpha of the Beta distribution by which two images are blended (Zhang et al., arXiv 1710.09412)
    label_smoothing  share of the target spread over all classes (Szegedy et al. 2015, arXiv 1512.00567, section 7)
    """

    flip: Flip = "none"
    random_crop: Annotated[float, Meta(ge=0.01, le=1)] = 1.0
    scale: tuple[Factor, Factor] = (1.0, 1.0)
    rotate: Annotated[float, Meta(ge=0, le=180)] = 0.0
    colour: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    erase: Annotated[float, Meta(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Meta(ge=0, le=10)] = 0.0
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    @property
    def changes_images(self) -> bool:
        """Whether images are changed individually, which `mixup` and `label_smoothing` do not do."""
        return msgspec.structs.replace(self, mixup=0.0, label_smoothing=0.0) != Augmentation()


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


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`max_drop` is the largest acceptable loss of the main score, top1 or mean_iou."""

    max_drop: float = 0.01
    calibration: Calibration = "percentile"
    calibration_images: int = 128


DEFAULT_PLAN = Plan()


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`mean` and `std` are per channel, or one for all, of pixels times `scale`; `size` is (height, width)."""

    task: Task | None = None
    labels: Path | None = None
    palette: Path | None = None
    colour: Colour | None = None
    layout: Layout | None = None
    size: Size | None = None
    fit: Fit | None = None
    output: str | None = None
    uint8_front: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    tail: Tail = "none"


class AscentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` is the size of a step: its root mean square over the picture's pixels, as a share of the range from black
    to white. `jitter` is the maximum random cyclic shift of the picture before each step, in pixels. `blur` is the
    standard deviation in pixels of the Gaussian that smooths it every fourth step; 0 is none. `coloured` is as in
    `Subject`."""

    steps: int
    rate: float
    jitter: int
    blur: float
    space: Space
    coloured: bool = True
