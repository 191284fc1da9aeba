"""From an ONNX file made elsewhere to a version in a model repository that serves Classify or Segment."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.special import softmax

from models import runtime
from models.adopt.weights import read_labels
from models.data.batches import loader
from models.data.generated import generated
from models.errors import BadNetworkFile, ParityRefused
from models.exporting import publish
from models.foreign.batch import freed
from models.foreign.look import CHANNELS, Found, Layout, Task, likely_task
from models.foreign.palette import read_palette
from models.foreign.wrap import PREFIX, Answer, Front, Tail, wrapped
from models.runtime import Session
from service import metadata
from service.metadata import Document, Fit, InputSpec, Parity, Provenance

TRIAL_SIDE = 224  # pixels, of the image that a network of any size is first tried with
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)  # that a network of any size may want of an image's sides
BATCHES = (1, 3)  # that the result is tried with
IMAGES = 24
TOLERANCES = {TensorProto.FLOAT: 1e-4, TensorProto.UINT8: 1e-4, TensorProto.FLOAT16: 1e-2}  # of probabilities
MIN_SAME = 0.9999  # share of classes, of images or pixels, where two probabilities are not equal but for rounding

Size = tuple[int, int]
Colour = Literal["RGB", "BGR", "L"]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the file does not say and its user does. `mean` and `std` are by channel, or one for all, of pixels times
    `scale`; `size` is (height, width)."""

    task: Task | None = None
    labels: Path | None = None
    palette: Path | None = None
    colour: Colour | None = None
    layout: Layout | None = None
    size: Size | None = None
    fit: Fit | None = None
    uint8_front: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    tail: Tail = "none"


class Adopted(NamedTuple):
    """The file in the repository, and what it says about itself."""

    path: Path
    document: Document


def adopt(found: Found, source: str, repository: Path, name: str, wanted: Wanted) -> Adopted:
    """Write the network, told what is wanted, as the next version of the model `name`, if it then answers as the file
    does. `source` is the file's name, for the metadata. Raises BadModelName, BadNetworkFile, BadWeights,
    ParityRefused; nothing is written then, and the file itself is never changed."""
    publish.check_name(name)
    layout = wanted.layout or found.layout
    if layout is None:
        raise BadNetworkFile(f"input is {found.input}: which axis is the channels'? want --layout NCHW or NHWC")
    channels = _channels(found, layout, wanted)
    front = _front(found, layout, channels, wanted)
    original = _session(found.model)
    size = _size(found, layout, wanted)
    answer = _answer(found, original, front, size or (TRIAL_SIDE, TRIAL_SIDE), channels, wanted)
    if size is None and answer.task == "classification":
        raise BadNetworkFile(f"input is {found.input}, and takes several sizes: want --size HxW for a classifier")
    batch = found.input.shape[0]
    inner = freed(found.model) if isinstance(batch, int) else found.model
    graph = wrapped(inner, front, answer, wanted.tail, size or (None, None), channels)
    running = _batched(graph, size, channels, str(batch))
    labels = _labels(wanted.labels, answer.classes)
    palette = None if wanted.palette is None else read_palette(wanted.palette, answer.classes)
    spec = _spec(running, size, channels, wanted)
    provenance = Provenance(architecture=found.model.producer_name or "unknown", data=source)
    try:
        document = Document(task=answer.task, labels=labels, palette=palette, input=spec, provenance=provenance)
    except ValueError as error:
        raise BadNetworkFile(f"cannot be served so: {error}") from None
    document = msgspec.structs.replace(document, parity=_compare(found, original, running, front, answer, spec))
    properties = {entry.key: entry.value for entry in found.model.metadata_props}
    helper.set_model_props(graph, {**properties, metadata.KEY: metadata.encode(document)})
    onnx.checker.check_model(graph)
    return Adopted(publish.publish(graph.SerializeToString(), repository, name), document)


def _channels(found: Found, layout: Layout, wanted: Wanted) -> int:
    side = found.input.shape[1 if layout == "NCHW" else 3]
    given = None if wanted.colour is None else 1 if wanted.colour == "L" else 3
    channels = side if isinstance(side, int) else given
    if channels is None:
        raise BadNetworkFile(f"input is {found.input}: how many channels? want --colour RGB, BGR or L")
    if channels not in CHANNELS or given not in (None, channels):
        raise BadNetworkFile(f"input is {found.input}, {channels} channels as {layout}, want 1 for L, 3 for RGB or BGR")
    return channels


def _front(found: Found, layout: Layout, channels: int, wanted: Wanted) -> Front | None:
    told = {"--mean": wanted.mean, "--std": wanted.std, "--scale": wanted.scale}
    names = " and ".join(name for name, value in told.items() if value is not None)
    as_served = found.input.dtype == "uint8" and layout == "NHWC" and wanted.colour != "BGR"
    if not wanted.uint8_front:
        if not as_served:
            raise BadNetworkFile(
                f"input is {found.input} as {layout}, images arrive as uint8 [N, H, W, C]: want --uint8-front, with "
                "--mean, --std and --scale as the network was trained"
            )
        if names:
            raise BadNetworkFile(f"{names} want --uint8-front: it is what applies them")
        return None
    if found.input.dtype == "uint8" and names:
        raise BadNetworkFile(f"input is {found.input}: bytes are not normalised, want no {names}")
    return Front(
        layout=layout,
        dtype={"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[
            found.input.dtype
        ],
        mean=_each("--mean", wanted.mean or (0.0,), channels),
        std=_each("--std", wanted.std or (1.0,), channels),
        scale=1.0 if found.input.dtype == "uint8" else 1 / 255 if wanted.scale is None else wanted.scale,
        reverse=wanted.colour == "BGR",
    )


def _each(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise BadNetworkFile(f"{option} has {len(values)} numbers for {channels} channels")
    if option == "--std" and not all(values):
        raise BadNetworkFile("--std has a 0, want other numbers: pixels are divided by them")
    return tuple(values) if len(values) == channels else tuple(values) * channels


def _size(found: Found, layout: Layout, wanted: Wanted) -> Size | None:
    sides = found.input.shape[2:4] if layout == "NCHW" else found.input.shape[1:3]
    fixed = tuple(side for side in sides if isinstance(side, int))
    if len(fixed) < 2:
        return wanted.size
    if wanted.size not in (None, fixed):
        raise BadNetworkFile(f"input is {found.input}, want --size {fixed[0]}x{fixed[1]} or none")
    return fixed[0], fixed[1]


def _answer(found: Found, original: Session, front: Front | None, size: Size, channels: int, wanted: Wanted) -> Answer:
    given = _original(found, original, front, _noise(size, channels, _batch(found)))
    task = wanted.task or likely_task(given)
    if task is None or given.dtype.kind != "f" or (task == "classification" and likely_task(given) != task):
        raise BadNetworkFile(
            f"answer is {given.dtype} {list(given.shape)} for an image of {size[0]}x{size[1]}: want a number for each "
            "class, [N, classes], or for each class at each pixel, [N, classes, H, W] or [N, H, W, classes]"
        )
    axis = 1 if task == "classification" else _class_axis(given, size)
    sums = given.astype(np.float64).sum(axis=axis)
    probabilities = bool((given >= 0).all() and np.abs(sums - 1).max() < 1e-2)
    what = "probabilities" if probabilities else "no probabilities"
    fitting: Tail = "argmax" if task == "segmentation" else "none" if probabilities else "softmax"
    if wanted.tail != fitting:
        raise BadNetworkFile(f"answer {found.outputs[0].name!r} holds {what} for {task}: want --tail {fitting}")
    return Answer(found.outputs[0].name, task, axis, given.ndim, given.shape[axis], probabilities)


def _class_axis(given: NDArray[Any], size: Size) -> int:
    if given.ndim == 4 and given.shape[2:] == size:
        return 1
    if given.ndim == 4 and given.shape[1:3] == size:
        return 3
    raise BadNetworkFile(
        f"answer is {list(given.shape)} for an image of {size[0]}x{size[1]}: want a number for each class at each pixel"
    )


def _batched(graph: onnx.ModelProto, size: Size | None, channels: int, batch: str) -> Session:
    """A session of the result, which takes several images at a time. Raises BadNetworkFile, naming what forbids it."""
    trial = size or (TRIAL_SIDE, TRIAL_SIDE)
    try:
        session = _session(graph, optimised=False)  # whose nodes have the names that they have in the file
        for count in BATCHES:
            (first, *_) = session.run(None, {metadata.IMAGE: _noise(trial, channels, count)})
            if len(first) != count:
                raise BadNetworkFile(
                    f"batch size {batch} cannot be made free: {_culprit(graph, trial, channels)} answers {len(first)} "
                    f"for {count} images"
                )
    except BadNetworkFile:
        raise
    except Exception as error:  # whatever onnxruntime makes of a graph
        node = re.search(r"Name:'(.*?)'|Node[: ]+\(?([\w/.:-]+)\)?", str(error))
        named = next(filter(None, node.groups()), "").removeprefix(PREFIX) if node else ""
        raise BadNetworkFile(
            f"batch size {batch} cannot be made free: node {named!r} forbids it: {_words(error)}"
        ) from None
    return _session(graph)


def _culprit(graph: onnx.ModelProto, size: Size, channels: int) -> str:
    """The first node whose answer does not grow with the batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    names = [name for node in copy.graph.node for name in node.output[:1] if name]
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = _session(copy)
    one, several = (
        dict(zip(names, session.run(names, {metadata.IMAGE: _noise(size, channels, count)}), strict=True))
        for count in BATCHES
    )
    grown = {name for name in names if several[name].size == BATCHES[-1] * one[name].size}
    grown.add(metadata.IMAGE)
    for node in copy.graph.node:
        if grown.intersection(node.input) and node.output[0] not in grown and several[node.output[0]].dtype.kind == "f":
            return f"node {node.name.removeprefix(PREFIX)!r} ({node.op_type})"
    return "some node"


def _labels(path: Path | None, classes: int) -> list[str]:
    labels = [f"class {index}" for index in range(classes)] if path is None else read_labels(path)
    if len(labels) != classes:
        raise BadNetworkFile(f"{path} has {len(labels)} labels for {classes} classes")
    return labels


def _spec(running: Session, size: Size | None, channels: int, wanted: Wanted) -> InputSpec:
    colour: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
    if size is not None:
        if wanted.fit == "pad":
            raise BadNetworkFile(f"--fit pad is for images of any size, the input is {size[0]}x{size[1]}")
        return InputSpec(colour=colour, height=size[0], width=size[1], fit=wanted.fit or "stretch")
    if wanted.fit not in (None, "pad"):
        raise BadNetworkFile(f"--fit {wanted.fit} wants --size HxW: the network takes images of any size")
    return InputSpec(colour=colour, fit="pad", multiple=_multiple(running, channels))


def _multiple(running: Session, channels: int) -> int:
    """The least multiple that the sides of an image must be of, for a mask of the same size."""
    for multiple in MULTIPLES:
        least = -(-40 // multiple)
        # Odd multiples, and different ones: an even one would be a larger multiple.
        size = (multiple * (least | 1), multiple * ((least | 1) + 2))
        try:
            mask = running.run([metadata.MASK], {metadata.IMAGE: _noise(size, channels, 1)})[0]
        except Exception:  # not of this one: onnxruntime has a class of its own for each way to fail
            continue
        if mask.shape == (1, *size):
            return multiple
    raise BadNetworkFile(f"no multiple up to {MULTIPLES[-1]} is one of whose sizes masks come back: want --size HxW")


def _compare(
    found: Found,
    original: Session,
    running: Session,
    front: Front | None,
    answer: Answer,
    spec: InputSpec,
) -> Parity:
    largest, same, answers, images = 0.0, 0, 0, 0
    tolerance = TOLERANCES[TensorProto.FLOAT if front is None else front.dtype]
    for batch in _images(spec):
        expected = _original(found, original, front, batch).astype(np.float64)
        shares = expected if answer.probabilities else softmax(expected, answer.axis)
        shares = np.moveaxis(shares, answer.axis, -1).reshape(-1, shares.shape[answer.axis])
        outputs = running.run(None, {metadata.IMAGE: batch})
        if answer.task == "classification":
            difference = np.abs(outputs[0] - shares).max()
            classes = outputs[0].argmax(axis=1)
        else:
            # A confidence is rounded to one of 255 steps.
            difference = max(0.0, np.abs(outputs[1].reshape(-1) / 255 - shares.max(axis=1)).max() - 0.5 / 255)
            classes = outputs[0].reshape(-1).astype(int)
        # Of two that are equal but for rounding either may win.
        chosen = np.take_along_axis(shares, classes[:, None], axis=1)[:, 0]
        same += int((shares.max(axis=1) - chosen <= tolerance).sum())
        largest, answers, images = float(np.max([largest, difference])), answers + len(classes), images + len(batch)
    if not largest <= tolerance or same / answers < MIN_SAME:
        raise ParityRefused(
            f"the result does not answer as the file does on {images} images: probabilities differ by up to "
            f"{largest:.3g}, want at most {tolerance:g}; {same / answers:.3%} of classes are equal, want {MIN_SAME:.2%}"
        )
    share = same / answers
    classification = answer.task == "classification"
    return Parity(
        images=images,
        max_abs_difference=largest,
        top1_agreement=share if classification else None,
        mask_agreement=None if classification else share,
    )


def _images(spec: InputSpec) -> Iterator[NDArray[np.uint8]]:
    """Random textures as serving brings them to the input, and noise."""
    count = 0
    for images, _ in loader(generated(spec), spec, batch_size=BATCHES[-1]):
        yield images.numpy()
        count += len(images)
        if count >= IMAGES:
            return


def _original(found: Found, original: Session, front: Front | None, images: NDArray[np.uint8]) -> NDArray[Any]:
    """What the file itself answers, as many images at a time as it takes; pixels are brought to it by numpy."""
    values = images if front is None else front.applied(images)
    size = found.input.shape[0]
    step = size if isinstance(size, int) else len(values)
    parts = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
        parts.append(original.run([found.outputs[0].name], {found.input.name: filled})[0][: len(part)])
    return np.concatenate(parts)


def _batch(found: Found) -> int:
    size = found.input.shape[0]
    return size if isinstance(size, int) else 1


def _noise(size: Size, channels: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def _session(model: onnx.ModelProto, optimised: bool = True) -> Session:
    try:
        return runtime.session(model, optimised=optimised)
    except Exception as error:  # whatever onnxruntime makes of a file
        raise BadNetworkFile(f"onnxruntime does not run it: {_words(error)}") from None


def _words(error: Exception) -> str:
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", " ".join(str(error).split()))
    return text.replace(PREFIX, "")[:300]
