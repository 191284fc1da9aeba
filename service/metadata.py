"""What an exported ONNX file says about itself: the JSON document under the key `convoy` of its `metadata_props`."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from service.errors import BadMetadata

KEY = "convoy"

# The tensors of an exported file: `image` in, the task's names out.
IMAGE = "image"  # uint8 (N, H, W, C)
PROBABILITIES = "probabilities"  # float32 (N, classes)
MASK = "mask"  # uint8 (N, H, W)
CONFIDENCE = "confidence"  # uint8 (N, H, W), the winning probability times 255, rounded
HEAT_MAP = (
    "heat_map"  # float32 (N, H - h + 1, W - w + 1), -1..1: how well a template of h x w fits with its corner there
)
LOCATION = "location"  # int64 (N, 2), the row and the column of the highest value of the heat map
SCORE = "score"  # float32 (N), that value

MAX_MASK_CLASSES = 256  # a class index is one byte of the mask

Task = Literal["classification", "segmentation", "matching"]
Fit = Literal["stretch", "crop", "letterbox", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Byte = Annotated[int, Meta(ge=0, le=255)]
Side = Annotated[int, Meta(ge=1, le=65_535)]
Share = Annotated[float, Meta(ge=0, le=1)]


class InputSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image reaches the input tensor: uint8 (N, height, width, channels), RGB or grey, 0..255.

    With `height` and `width`, `fit` says how an image of another size is brought to them: `stretch` resizes both sides
    freely, `crop` resizes until the image covers the input and cuts the middle out, `letterbox` resizes until it fits
    inside and fills the rest with `fill`. Without them (`fit` is `pad`) the image keeps its size and is padded at its
    right and bottom with `fill` to the next `multiple`, and to `min_height` and `min_width`, the least that the network
    takes.
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


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the network came from. `metrics` were measured on the held-out split (`top1`, `mean_iou`, ...)."""

    architecture: str
    data: str
    commit: str = ""  # of the source tree that trained it; empty where there is none
    metrics: dict[str, float] = {}


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far onnxruntime's answers were from PyTorch's at export, over `images` held-out images."""

    images: Annotated[int, Meta(ge=1)]
    max_abs_difference: Annotated[float, Meta(ge=0)]  # of probabilities
    top1_agreement: Share | None = None  # classification
    mask_agreement: Share | None = None  # segmentation, share of pixels


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole document.

    `labels[i]` names class i, or the one thing that is looked for; `palette[i]` is its (red, green, blue) in pictures.
    """

    schema_version: Literal[1] = 1
    task: Task
    labels: Annotated[list[str], Meta(min_length=1)]
    palette: list[tuple[Byte, Byte, Byte]] | None = None
    input: InputSpec
    provenance: Provenance | None = None
    parity: Parity | None = None

    def __post_init__(self) -> None:
        spec = self.input
        if (spec.height is None) != (spec.width is None):
            raise ValueError("input.height and input.width stand together or not at all")
        if (spec.height is None) != (spec.fit == "pad"):
            raise ValueError(f"input.fit is {spec.fit!r}: 'pad' goes with a free size, the others with a fixed one")
        if any(side is not None and side % spec.multiple for side in (spec.height, spec.width)):
            raise ValueError(f"input is {spec.height}x{spec.width}, want multiples of input.multiple {spec.multiple}")
        if spec.height is not None and (spec.min_height, spec.min_width) != (1, 1):
            raise ValueError("input.min_height and input.min_width go with a free size")
        if self.task == "matching" and (spec.fit != "pad" or len(self.labels) != 1):
            raise ValueError(f"matching has input.fit {spec.fit!r} and {len(self.labels)} labels, want 'pad' and 1")
        if self.task == "segmentation" and spec.fit == "crop":
            raise ValueError("input.fit is 'crop': a class map must cover the whole image")
        if self.task == "segmentation" and len(self.labels) > MAX_MASK_CLASSES:
            raise ValueError(f"{len(self.labels)} labels, want at most {MAX_MASK_CLASSES} for a mask")
        if self.palette is not None and len(self.palette) != len(self.labels):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.labels)} labels")


def encode(document: Document) -> str:
    """The JSON text that goes into `metadata_props`. Raises BadMetadata where `decode` would refuse it."""
    text = msgspec.json.encode(document).decode()
    decode({KEY: text})  # a number that JSON lacks, such as NaN, would only be noticed by the server
    return text


def decode(properties: Mapping[str, str]) -> Document | None:
    """The document in an ONNX file's `metadata_props`, or None where the file has none.

    Raises BadMetadata where there is one that does not hold.
    """
    text = properties.get(KEY)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Document)
    except (msgspec.MsgspecError, ValueError) as error:
        # A field's name is whatever the file says: the message stays one line.
        raise BadMetadata(f"metadata document {KEY!r}: {' '.join(str(error).split())}") from None
