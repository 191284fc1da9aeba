"""Adoption of an ONNX file made elsewhere as a version in a model repository that serves Classify or Segment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import onnx
from onnx import TensorProto, helper

from convoy.models.data import picture
from convoy.models.data.formats.coding import RGB, read_colours
from convoy.models.errors import BadNetworkFile
from convoy.models.export import field, publish
from convoy.models.export.seal import sealed
from convoy.models.onnx_import import check
from convoy.models.onnx_import.onnx_file import CHANNELS, OnnxFile, Tensor
from convoy.models.onnx_import.original import Front, Original, error_message, noise, session
from convoy.models.onnx_import.output import Output, detect
from convoy.models.onnx_import.rewrite import with_dynamic_batch
from convoy.models.onnx_import.wrap import wrapped
from convoy.models.pretrained.weights import read_labels
from convoy.models.runtime import Session, Step, silent
from convoy.models.settings import ImportOptions, Layout, Size
from convoy.service import metadata
from convoy.service.metadata import Document, InputSpec, Provenance

TRIAL_SIDE = 224  # pixels of the first test image, for a network of any size
MAX_PIXELS = 50_000_000  # in a test image: the server's default limit
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)  # candidates for the multiple that a network requires of an image's sides


class Adopted(NamedTuple):
    """The file in the repository, its metadata, and whether it has a confidence."""

    path: Path
    document: Document
    confident: bool


def adopt(
    file: OnnxFile, source: str, repository: Path, name: str, options: ImportOptions, step: Step = silent
) -> Adopted:
    """Writes the network with the given specification as the next version of the model `name`, if its outputs match the
    file's. `source` is the file's name, for the metadata. Raises BadModelName, BadNetworkFile, BadWeights,
    ParityRefused; then nothing is written. Each long step is announced to `step`. The file itself is never changed."""
    publish.check_name(name)
    layout = options.layout or file.layout
    if layout is None:
        raise BadNetworkFile(f"input is {file.input}: which axis is the channels'? want --layout NCHW or NHWC")
    channels = _channels(file, layout, options)
    original = Original(file, chosen(file, options.output), _front(file, layout, channels, options))
    size = _size(file, layout, options)
    trial = size or (TRIAL_SIDE, TRIAL_SIDE)
    labels = None if options.labels is None else read_labels(options.labels)
    step("running the file")
    output = detect(original, trial, channels, options.task, options.tail, None if labels is None else len(labels))
    if size is None and output.task == "classification":
        raise BadNetworkFile(f"input is {file.input}, which accepts several sizes: want --size HxW for a classifier")
    batch = file.input.shape[0]
    inner = with_dynamic_batch(file.model) if isinstance(batch, int) else file.model
    graph = wrapped(inner, original.front, output, size or (None, None), channels)
    step("checking batches")
    check.check_batching(graph, trial, channels, batch)
    running = session(graph)
    spec = _spec(running, size, channels, options)
    document = _document(file, source, output, labels, spec, options)
    step("comparing with the file on random images")
    document = msgspec.structs.replace(document, parity=check.check_parity(original, running, output, spec))
    if document.task == "segmentation":
        step("checking how far around a pixel the mask depends on the image")
        document = msgspec.structs.replace(document, receptive_field=field.of_mask(graph, document))
    _describe(graph, file, document)
    return Adopted(publish.publish(sealed(graph), repository, name), document, output.values != "indices")


def chosen(file: OnnxFile, name: str | None) -> Tensor:
    """Returns the output of that name, or the first one. Raises BadNetworkFile."""
    if name is None:
        return file.outputs[0]
    for tensor in file.outputs:
        if tensor.name == name:
            return tensor
    raise BadNetworkFile(f"--output {name!r}, want one of {', '.join(tensor.name for tensor in file.outputs)}")


def read_palette(path: Path, classes: int) -> list[RGB]:
    """Returns `classes` colours, (red, green, blue) in 0..255, from lines such as `#ff8000` or `255 128 0`, or from the
    palette of a PNG. Raises BadNetworkFile, BadData."""
    colours = picture.mask_header(path).palette if path.suffix.lower() == ".png" else read_colours(path)
    if len(colours) < classes:
        raise BadNetworkFile(f"{path} has {len(colours)} colours for {classes} classes")
    return colours[:classes]


def _channels(file: OnnxFile, layout: Layout, options: ImportOptions) -> int:
    side = file.input.shape[1 if layout == "NCHW" else 3]
    from_colour = None if options.colour is None else 1 if options.colour == "L" else 3
    channels = side if isinstance(side, int) else from_colour
    if channels is None:
        raise BadNetworkFile(f"input is {file.input}: how many channels? want --colour RGB, BGR or L")
    if channels not in CHANNELS or from_colour not in (None, channels):
        raise BadNetworkFile(f"input is {file.input}, {channels} channels as {layout}, want 1 for L, 3 for RGB or BGR")
    return channels


def _front(file: OnnxFile, layout: Layout, channels: int, options: ImportOptions) -> Front | None:
    normalisation = {"--mean": options.mean, "--std": options.std, "--scale": options.scale}
    names = " and ".join(name for name, value in normalisation.items() if value is not None)
    as_served = file.input.dtype == "uint8" and layout == "NHWC" and options.colour != "BGR"
    if not options.uint8_front:
        if not as_served:
            raise BadNetworkFile(
                f"input is {file.input} as {layout}, images arrive as uint8 [N, H, W, C]: want --uint8-front, with "
                "--mean, --std and --scale as the network was trained"
            )
        if names:
            raise BadNetworkFile(f"{names} want --uint8-front: it is what applies them")
        return None
    if file.input.dtype == "uint8" and names:
        raise BadNetworkFile(f"input is {file.input}: bytes are not normalised, want no {names}")
    scale = 1.0 if file.input.dtype == "uint8" else 1 / 255 if options.scale is None else options.scale
    mean, std = _each("--mean", options.mean or (0.0,), channels), _each("--std", options.std or (1.0,), channels)
    _check_range(options, scale)
    return Front(
        layout=layout,
        dtype={"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[
            file.input.dtype
        ],
        mean=mean,
        std=std,
        scale=scale,
        reverse=options.colour == "BGR",
    )


def _check_range(options: ImportOptions, scale: float) -> None:
    """Raises BadNetworkFile for a mean or deviation beyond all pixels: of another range, usually 0..255."""
    highest = 255 * abs(scale)
    for option, values in (("--mean", options.mean), ("--std", options.std)):
        if values is not None and max(map(abs, values)) > highest * (1 + 1e-6):
            listed = ",".join(f"{value:g}" for value in values)
            smaller = ",".join(f"{value * scale:.3g}" for value in values)
            by = "1/255" if scale == 1 / 255 else f"{scale:.4g}"
            raise BadNetworkFile(
                f"{option} {listed} is beyond the range of pixels, 0..{highest:g} with --scale {by}: want --scale 1, "
                f"or {option} {smaller}"
            )


def _each(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise BadNetworkFile(f"{option} has {len(values)} numbers for {channels} channels")
    if option == "--std" and not all(values):
        raise BadNetworkFile("--std has a 0, want other numbers: pixels are divided by them")
    return tuple(values) if len(values) == channels else tuple(values) * channels


def _size(file: OnnxFile, layout: Layout, options: ImportOptions) -> Size | None:
    sides = file.input.shape[2:4] if layout == "NCHW" else file.input.shape[1:3]
    requested: Sequence[int | str] = sides if options.size is None else options.size
    if any(isinstance(side, int) and side != size for side, size in zip(sides, requested, strict=True)):
        raise BadNetworkFile(f"input is {file.input}, want --size {_sides(sides)}{_or_none(sides)}")
    fixed = [side for side in requested if isinstance(side, int)]
    if len(fixed) == 1:
        raise BadNetworkFile(f"input is {file.input}, one side fixed, the other free: want --size {_sides(sides)}")
    if len(fixed) == 2 and fixed[0] * fixed[1] > MAX_PIXELS:
        raise BadNetworkFile(f"images of {_sides(fixed)} are too large to try, want at most {MAX_PIXELS:,} pixels")
    return (fixed[0], fixed[1]) if fixed else None


def _sides(sides: Sequence[int | str]) -> str:
    return "x".join(str(side) if isinstance(side, int) else name for side, name in zip(sides, "HW", strict=True))


def _or_none(sides: Sequence[int | str]) -> str:
    return " or none" if all(isinstance(side, int) for side in sides) else ""


def _document(
    file: OnnxFile, source: str, output: Output, labels: list[str] | None, spec: InputSpec, options: ImportOptions
) -> Document:
    classes = output.classes
    if labels is not None and len(labels) != classes:
        raise BadNetworkFile(f"{options.labels} has {len(labels)} labels for {classes} classes")
    try:
        return Document(
            task=output.task,
            labels=labels or [f"class {index}" for index in range(classes)],
            palette=None if options.palette is None else read_palette(options.palette, classes),
            input=spec,
            provenance=Provenance(architecture=source, data=""),
        )
    except ValueError as error:
        raise BadNetworkFile(f"cannot be served: {error}") from None


def _spec(running: Session, size: Size | None, channels: int, options: ImportOptions) -> InputSpec:
    colour: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
    if size is not None:
        if options.fit == "pad":
            raise BadNetworkFile(f"--fit pad is for images of any size, the input is {size[0]}x{size[1]}")
        return InputSpec(colour=colour, height=size[0], width=size[1], fit=options.fit or "stretch")
    if options.fit not in (None, "pad"):
        raise BadNetworkFile(f"--fit {options.fit} wants --size HxW: the network accepts images of any size")
    return InputSpec(colour=colour, fit="pad", multiple=_multiple(running, channels))


def _multiple(running: Session, channels: int) -> int:
    """Returns the smallest multiple for an image's sides with which the mask has the image's size."""
    for multiple in MULTIPLES:
        least = -(-40 // multiple)
        # Odd multiples, and different ones: an even one would be a larger multiple.
        size = (multiple * (least | 1), multiple * ((least | 1) + 2))
        try:
            mask = running.run([metadata.MASK], {metadata.IMAGE: noise(size, channels, 1)})[0]
        except Exception:  # not this multiple; onnxruntime raises a different class for each kind of failure
            continue
        if mask.shape == (1, *size):
            return multiple
    raise BadNetworkFile(f"no multiple up to {MULTIPLES[-1]} fits, the mask always differs in size: want --size HxW")


def _describe(graph: onnx.ModelProto, file: OnnxFile, document: Document) -> None:
    properties = {entry.key: entry.value for entry in file.model.metadata_props}
    helper.set_model_props(graph, {**properties, metadata.KEY: metadata.encode(document)})
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise BadNetworkFile(f"the result is not a valid ONNX file: {error_message(error)}") from None
