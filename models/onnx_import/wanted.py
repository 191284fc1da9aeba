"""Information that an ONNX file does not contain, from the options of `convoy adopt`."""

from pathlib import Path
from typing import Literal

import msgspec

from convoy.service.metadata import Fit

Task = Literal["classification", "segmentation"]
Layout = Literal["NCHW", "NHWC"]
Colour = Literal["RGB", "BGR", "L"]
Tail = Literal["softmax", "sigmoid", "argmax", "none"]
Size = tuple[int, int]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
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
