"""Load test requests to a model of `convoy.v1.Vision`: its listing, images from a folder or generated, answers."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from convoy.service.bench.calls import Outcome, Workload, refusal
from convoy.service.bench.plan import ImageModel, Plan
from convoy.service.client.client import Client
from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.requests import read_image
from convoy.service.client.results import (
    Model,
    ServerError,
    read_classifications,
    read_message_error,
    read_segmentations,
)
from convoy.service.errors import BadConfig, ModelUnavailable, UnknownModel, meant
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

_ANY_SIZE = 256  # pixels per side of generated images for a model that accepts any size
_TOP_K = 5
_DISTINCT = 16  # generated images: enough to defeat caches
_SUFFIXES = (".jpeg", ".jpg", ".png")


def models(
    server: str, weights: Sequence[tuple[str, float]], seconds: float, credentials: Credentials = PLAIN
) -> tuple[ImageModel, ...]:
    """The server's listing of these models. Raises UnknownModel, ModelUnavailable, BadConfig, ServerError."""
    with Client(server, credentials=credentials) as client:
        served = client.models(seconds)
    return tuple(_image_model(choose(served, name), weight) for name, weight in weights)


def choose(served: Sequence[Model], name: str) -> Model:
    """The highest ready version of the model. Raises UnknownModel, ModelUnavailable, BadConfig."""
    versions = [one for one in served if one.model == name]
    if not versions:
        known = sorted({one.model for one in served})
        others = ", ".join(known) or "none"
        raise UnknownModel(f"the server has no model {name!r}; it has {others}{meant(name, known)}")
    ready = [one for one in versions if one.state == "ready"]
    if not ready:
        raise ModelUnavailable(f"model {name!r} is not ready: {versions[-1].reason or versions[-1].state}")
    best = max(ready, key=lambda one: one.version)
    if best.tensor is not None:
        raise BadConfig(f"model {name!r} accepts no images: use --protocol oip")
    if best.task not in ("classification", "segmentation"):
        raise BadConfig(
            f"model {name!r} is for {best.task}, want a classification or a segmentation model, or --protocol oip"
        )
    return best


def workload(plan: Plan, model: ImageModel, index: int) -> Workload:
    """`plan.batch` images in turn, to the RPC of the model's task; `index` is the model's in the plan."""
    classifies = model.task == "classification"
    message = (
        pb.ClassifyRequest(model=model.model, version=int(model.version), top_k=_TOP_K)
        if classifies
        else pb.SegmentRequest(model=model.model, version=int(model.version), format=pb.MASK_FORMAT_RAW)
    )
    if plan.folder is not None:
        files = from_folder(Path(plan.folder))
    else:
        files = generated(model.colour, plan.sizes or ((model.height, model.width),))
    # A serialised message is the concatenation of its fields, so fields are serialised once and joined per request. The
    # field `images` has the same number in both requests.
    head = message.SerializeToString()
    images = [pb.ClassifyRequest(images=[pb.Image(encoded=file)]).SerializeToString() for file in files]

    def body(number: int) -> bytes:
        first = number * plan.batch
        return head + b"".join(images[(first + offset) % len(images)] for offset in range(plan.batch))

    def read(number: int, answer: bytes) -> Outcome:
        results = (
            read_classifications(pb.ClassifyResponse.FromString(answer))
            if classifies
            else read_segmentations(pb.SegmentResponse.FromString(answer))
        )
        timings = tuple(result.timings for result in results if not isinstance(result, ServerError))
        refused = tuple(refusal(result) for result in results if isinstance(result, ServerError))
        return Outcome(index, len(timings), timings, refused)

    def skim(number: int, answer: bytes) -> Outcome:
        response = (pb.ClassifyResponse if classifies else pb.SegmentResponse).FromString(answer)
        errors = (result.error for result in response.results if result.HasField("error"))
        refused = tuple(refusal(read_message_error(error)) for error in errors)
        return Outcome(index, len(response.results) - len(refused), (), refused)

    method = f"/convoy.v1.Vision/{'Classify' if classifies else 'Segment'}"
    period = len(images) // math.gcd(len(images), plan.batch)
    return Workload(method, body, read, lambda number: plan.batch, skim, period)


def from_folder(folder: Path) -> list[bytes]:
    """The unchanged JPEG and PNG files of a folder, by name. Raises BadConfig if there are none."""
    if not folder.is_dir():
        raise BadConfig(f"{str(folder)!r} is not a folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise BadConfig(f"folder {str(folder)!r} contains no JPEG or PNG file")
    return [read_image(path) for path in paths]


def generated(colour: str, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """PNG files of that colour (L or RGB), with those sizes (height, width) in turn, the same at every call.

    Soft blotches with a little noise: their file sizes are similar to photographs'.
    """
    random = np.random.default_rng(0)
    count = max(_DISTINCT, len(sizes))
    return [_blotches(random, *sizes[place % len(sizes)], colour) for place in range(count)]


def _image_model(model: Model, weight: float) -> ImageModel:
    return ImageModel(
        model=model.model,
        version=str(model.version),
        weight=weight,
        task=model.task,
        height=model.input.height or _ANY_SIZE,
        width=model.input.width or _ANY_SIZE,
        colour="L" if model.input.colour == "L" else "RGB",
    )


def _blotches(random: np.random.Generator, height: int, width: int, mode: str) -> bytes:
    channels = 1 if mode == "L" else 3
    coarse = random.integers(0, 256, (max(2, height // 32), max(2, width // 32), channels), np.uint8)
    soft = PIL.Image.fromarray(coarse.squeeze()).resize((width, height), PIL.Image.Resampling.BICUBIC)
    noise = random.normal(0, 3, np.asarray(soft).shape)
    return _png(PIL.Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)))


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
