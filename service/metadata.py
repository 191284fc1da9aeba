"""The metadata of an exported ONNX file: the JSON document under the key `convoy` in its `metadata_props`."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from convoy.service.errors import BadMetadata

KEY = "convoy"

# The tensors of an exported file: `image` in, the task's names out.
IMAGE = "image"  # uint8 (N, H, W, C)
PROBABILITIES = "probabilities"  # float32 (N, classes)
MASK = "mask"  # uint8 (N, H, W)
CONFIDENCE = "confidence"  # uint8 (N, H, W), the winning probability times 255, rounded; optional
HEAT_MAP = "heat_map"  # float32 (N, H - h + 1, W - w + 1), -1..1: similarity of the template and the h x w window there
LOCATION = "location"  # int64 (N, 2), the row and column of the maximum of the heat map
SCORE = "score"  # float32 (N), that maximum

_USUAL_SIDE = 64  # of a free axis, rounded up to the model's multiple, for a network that accepts any size
MOST_OF_A_DOCUMENT = 1 << 20  # bytes: ListModels must fit one message of 4 MiB, a client's usual limit
MOST_OF_A_NAME = 256  # characters
_MOST_LABELS = 1 << 16
_MOST_METRICS = 64
_MOST_OF_A_REASON = 300  # characters
MAX_MASK_CLASSES = 256  # a class index is one byte of the mask

Task = Literal["classification", "segmentation", "matching"]
Fit = Literal["stretch", "crop", "letterbox", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Name = Annotated[str, Meta(max_length=MOST_OF_A_NAME)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Side = Annotated[int, Meta(ge=1, le=65_535)]
Share = Annotated[float, Meta(ge=0, le=1)]
AxisName = Literal["channel", "time", "depth", "height", "width"]
Precision = Literal["fp32", "fp16", "int8"]
Calibration = Literal["entropy", "percentile", "minmax"]


class InputSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image is fitted to the input tensor: uint8 (N, height, width, channels), RGB or grey, 0..255.

    With `height` and `width`, `fit` selects how an image of another size is fitted: `stretch` resizes both sides
    independently, `crop` resizes until the image covers the input and keeps the centre, `letterbox` resizes until the
    image fits inside and fills the rest with `fill`. Without them (`fit` is `pad`) the image keeps its size and is
    padded with `fill` at its right and bottom to the next `multiple`, and to at least `min_height` and `min_width`, the
    smallest input that the network accepts.
    """

    colour: Literal["RGB", "L"]
    height: Side | None = None
    width: Side | None = None
    multiple: Annotated[int, Meta(ge=1, le=1024)] = 1
    min_height: Side = 1
    min_width: Side = 1
    fit: Fit = "stretch"
    interpolation: Interpolation = "bilinear"
    fill: Byte = 0

    @property
    def channels(self) -> int:
        return 3 if self.colour == "RGB" else 1


class Axis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One axis of a tensor, `size` elements long, or of any length.

    `spacing` is the distance between neighbouring elements, in `unit`: 0.01 s at 100 samples a second. `labels` names
    each element, such as the joint whose angle each channel is.
    """

    name: AxisName
    size: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    spacing: Annotated[float, Meta(gt=0)] | None = None
    unit: Name = ""
    labels: Annotated[list[Name], Meta(max_length=_MOST_LABELS)] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != self.size:
            raise ValueError(f"axis {self.name!r} has {len(self.labels)} labels for size {self.size}")
        if self.unit and self.spacing is None:
            raise ValueError(f"axis {self.name!r} has unit {self.unit!r} and no spacing")


class TensorInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The input of a network that does not accept images: a tensor with dimensions N, then `axes` in order.

    `unit` is the unit of its values. One axis is `channel`, of fixed size.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MOST_OF_A_NAME)]
    dtype: Literal["float32", "uint8"]
    axes: Annotated[tuple[Axis, ...], Meta(min_length=2, max_length=7)]
    unit: Name = ""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if len(set(names)) < len(names):
            raise ValueError(f"tensor.axes are {names}, want each name once")
        if not any(axis.name == "channel" and axis.size is not None for axis in self.axes):
            raise ValueError(f"tensor.axes are {names}, want 'channel' among them, with its size")

    @property
    def channel_axis(self) -> int:
        """The index of the channel axis in `axes`."""
        return next(place for place, axis in enumerate(self.axes) if axis.name == "channel")

    @property
    def channels(self) -> int:
        size = self.axes[self.channel_axis].size
        assert size is not None
        return size

    @property
    def free(self) -> bool:
        """Whether any axis may be of any length."""
        return any(axis.size is None for axis in self.axes)

    def places(self, shape: Sequence[int]) -> int:
        """Elements per channel in one tensor of `shape`, which excludes N."""
        return math.prod(side for side, axis in zip(shape, self.axes, strict=True) if axis.name != "channel")

    def __str__(self) -> str:
        sides = ", ".join(axis.name if axis.size is None else str(axis.size) for axis in self.axes)
        return f"{self.dtype} tensor {self.name!r} [N, {sides}]"


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The origin of the network. `metrics` were measured on the held-out split (`top1`, `mean_iou`, ...)."""

    architecture: Name
    data: Name
    commit: Name = ""  # of the source tree that trained it; empty if unknown
    metrics: Annotated[dict[Name, float], Meta(max_length=_MOST_METRICS)] = {}


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far onnxruntime's results differed from PyTorch's at export, over `images` held-out images or tensors."""

    images: Annotated[int, Meta(ge=1)]
    max_abs_difference: Annotated[float, Meta(ge=0)]  # of probabilities
    top1_agreement: Share | None = None  # classification
    mask_agreement: Share | None = None  # segmentation, share of pixels


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network in reduced precision, compared with the same network in fp32; both were measured in one run at export.

    `drop` is fp32's `score` minus this one's over the held-out split, -1..1. `agreement` is the share of images, or of
    mask pixels, with fp32's class, over `images` images. `max_abs_difference` is the largest of any probability or
    confidence. `speed_up` is fp32's time for one image divided by this one's; `batched_speed_up` is the same with each
    at its own most efficient batch size.
    """

    precision: Literal["fp16", "int8"]
    images: Annotated[int, Meta(ge=1)]
    score: Name = ""  # top1 or mean_iou; empty if there was no data to measure it on
    drop: Annotated[float, Meta(ge=-1, le=1)] | None = None
    agreement: Share
    max_abs_difference: Annotated[float, Meta(ge=0)]
    speed_up: Annotated[float, Meta(gt=0)]
    batched_speed_up: Annotated[float, Meta(gt=0)]
    provider: Name  # the onnxruntime execution provider of all measurements
    processor: Name = ""  # with its number of threads, for the CPU provider
    calibration: Calibration | None = None  # how the int8 ranges were chosen, and from how many training images
    calibration_images: Annotated[int, Meta(ge=1)] | None = None


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Along one axis, how many pixels `before` and `after` a pixel may affect its class, at most. The network's grids
    repeat every `stride` pixels: a part of an image has the same classes only if it begins at a multiple of that."""

    before: Annotated[int, Meta(ge=0, le=1 << 20)]
    after: Annotated[int, Meta(ge=0, le=1 << 20)]
    stride: Annotated[int, Meta(ge=1, le=1 << 16)]


class ReceptiveField(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of an image a pixel of the mask depends on. None: on all of the axis, or on the image's size or place, as
    with global pooling or attention."""

    height: Context | None = None
    width: Context | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole document. `input` describes how an image reaches the network, `tensor` any other input.

    `labels[i]` names class i, or the object that is located; `palette[i]` is its (red, green, blue) in pictures.
    """

    schema_version: Literal[1] = 1
    task: Task
    labels: Annotated[list[Name], Meta(min_length=1, max_length=_MOST_LABELS)]
    palette: list[tuple[Byte, Byte, Byte]] | None = None
    input: InputSpec | None = None
    tensor: TensorInput | None = None
    provenance: Provenance | None = None
    parity: Parity | None = None
    variant: Variant | None = None  # None: fp32, as trained
    receptive_field: ReceptiveField | None = None  # of a mask of any size; None: not known

    @property
    def image(self) -> InputSpec:
        """`input`, for a document that is known to accept images."""
        assert self.input is not None
        return self.input

    @property
    def takes(self) -> TensorInput:
        """The tensor at the network's input, also for a network that accepts images."""
        return self.tensor if self.tensor is not None else image_tensor(self.image)

    def __post_init__(self) -> None:
        if (self.input is None) == (self.tensor is None):
            raise ValueError("input and tensor: want exactly one of the two")
        if self.palette is not None and len(self.palette) != len(self.labels):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.labels)} labels")
        if self.input is not None:
            self._check_image(self.input)
        elif self.task != "classification":
            raise ValueError(f"task is {self.task!r}: it requires images; a tensor requires 'classification'")

    def _check_image(self, spec: InputSpec) -> None:
        if (spec.height is None) != (spec.width is None):
            raise ValueError("input.height and input.width are set together or not at all")
        if (spec.height is None) != (spec.fit == "pad"):
            raise ValueError(f"input.fit is {spec.fit!r}: 'pad' requires a free size, the others a fixed one")
        if any(side is not None and side % spec.multiple for side in (spec.height, spec.width)):
            raise ValueError(f"input is {spec.height}x{spec.width}, want multiples of input.multiple {spec.multiple}")
        if spec.height is not None and (spec.min_height, spec.min_width) != (1, 1):
            raise ValueError("input.min_height and input.min_width require a free size")
        if self.task == "matching" and (spec.fit != "pad" or len(self.labels) != 1):
            raise ValueError(f"matching has input.fit {spec.fit!r} and {len(self.labels)} labels, want 'pad' and 1")
        if self.task == "segmentation" and spec.fit == "crop":
            raise ValueError("input.fit is 'crop': a class map must cover the whole image")
        if self.task == "segmentation" and len(self.labels) > MAX_MASK_CLASSES:
            raise ValueError(f"{len(self.labels)} labels, want at most {MAX_MASK_CLASSES} for a mask")


@cache
def image_tensor(spec: InputSpec) -> TensorInput:
    """The input tensor of a network that accepts images as `spec` describes."""
    height, width = Axis(name="height", size=spec.height), Axis(name="width", size=spec.width)
    return TensorInput(name=IMAGE, dtype="uint8", axes=(height, width, Axis(name="channel", size=spec.channels)))


def input_shape(document: Document) -> tuple[int, ...]:
    """An input shape, without N, that the network accepts."""
    if document.tensor is not None:
        return tuple(axis.size or _USUAL_SIDE for axis in document.tensor.axes)
    spec = document.image
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width, spec.channels
    height, width = (
        -(-max(_USUAL_SIDE, least) // spec.multiple) * spec.multiple for least in (spec.min_height, spec.min_width)
    )
    return height, width, spec.channels


def default_palette(classes: int) -> list[tuple[int, int, int]]:
    """(red, green, blue) of each class of a model without a palette: the colours of Pascal VOC, class 0 black.

    The bits of the index go to red, green and blue in turn, from the lowest to the highest, and fill each channel from
    its highest bit down. So any two of 256 classes differ, and neighbours differ clearly.
    """
    assert classes <= MAX_MASK_CLASSES
    return [(_channel(index), _channel(index >> 1), _channel(index >> 2)) for index in range(classes)]


def _channel(index: int) -> int:
    # Bits 0, 3 and 6 become bits 7, 6 and 5.
    return (index & 1) << 7 | (index >> 3 & 1) << 6 | (index >> 6 & 1) << 5


def encode(document: Document) -> str:
    """The JSON text for `metadata_props`. Raises BadMetadata if `decode` would refuse it."""
    text = msgspec.json.encode(document).decode()
    decode({KEY: text})  # a number that JSON lacks, such as NaN, would otherwise fail only in the server
    return text


def decode(properties: Mapping[str, str]) -> Document | None:
    """The document in an ONNX file's `metadata_props`, or None if the file has none.

    Raises BadMetadata if the document is invalid.
    """
    text = properties.get(KEY)
    if text is None:
        return None
    if (size := len(text.encode(errors="replace"))) > MOST_OF_A_DOCUMENT:
        raise BadMetadata(f"metadata document {KEY!r} has {size} bytes, want at most {MOST_OF_A_DOCUMENT}")
    try:
        return msgspec.json.decode(text, type=Document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # The file chooses the field names: the message must stay one line, and short.
        reason = " ".join(str(error).split())[:_MOST_OF_A_REASON]
        raise BadMetadata(f"metadata document {KEY!r}: {reason}") from None
