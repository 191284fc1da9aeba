"""Load test requests to a model of `convoy.v1.Vision`: its listing, serialised requests, parsed answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

from convoy.service.bench.asking import Question, refusal
from convoy.service.bench.drive import Outcome
from convoy.service.bench.images import from_folder, generated
from convoy.service.bench.plan import ImageModel, Plan
from convoy.service.client.client import Client
from convoy.service.client.results import Model, ServerError, read_classifications, read_segmentations
from convoy.service.errors import BadConfig, ModelUnavailable, UnknownModel
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

_ANY_SIZE = 256  # pixels per side of generated images for a model that accepts any size
_TOP_K = 5


def models(server: str, weights: Sequence[tuple[str, float]], seconds: float) -> tuple[ImageModel, ...]:
    """The server's listing of these models. Raises UnknownModel, ModelUnavailable, BadConfig, ServerError."""
    with Client(server) as client:
        served = client.models(seconds)
    return tuple(_asked(choose(served, name), weight) for name, weight in weights)


def choose(served: Sequence[Model], name: str) -> Model:
    """The highest ready version of the model. Raises UnknownModel, ModelUnavailable, BadConfig."""
    versions = [one for one in served if one.model == name]
    if not versions:
        others = ", ".join(sorted({one.model for one in served})) or "none"
        raise UnknownModel(f"the server has no model {name!r}; it has {others}")
    ready = [one for one in versions if one.state == "ready"]
    if not ready:
        raise ModelUnavailable(f"model {name!r} is not ready: {versions[-1].reason or versions[-1].state}")
    best = max(ready, key=lambda one: one.version)
    if best.tensor is not None:
        raise BadConfig(f"model {name!r} takes no images: ask it with --protocol oip")
    if best.task not in ("classification", "segmentation"):
        raise BadConfig(
            f"model {name!r} is for {best.task}, want a classification or a segmentation model, or --protocol oip"
        )
    return best


def question(plan: Plan, model: ImageModel, place: int) -> Question:
    """`plan.batch` images in turn, to the RPC of the model's task; `place` is the model's index in the plan."""
    name, message = (
        ("Classify", pb.ClassifyRequest(model=model.model, version=int(model.version), top_k=_TOP_K))
        if model.task == "classification"
        else ("Segment", pb.SegmentRequest(model=model.model, version=int(model.version), format=pb.MASK_FORMAT_RAW))
    )
    # A serialised message is the concatenation of its fields, so fields are serialised once and joined per request.
    head, images = message.SerializeToString(), [_field(file) for file in _files(plan, model)]

    def body(number: int) -> bytes:
        first = number * plan.batch
        return head + b"".join(images[(first + place) % len(images)] for place in range(plan.batch))

    read = _reader(model.task, place)
    return Question(f"/convoy.v1.Vision/{name}", body, lambda number, answer: read(answer), lambda number: plan.batch)


def _asked(model: Model, weight: float) -> ImageModel:
    return ImageModel(
        model=model.model,
        version=str(model.version),
        weight=weight,
        task=model.task,
        height=model.input.height or _ANY_SIZE,
        width=model.input.width or _ANY_SIZE,
        colour="L" if model.input.colour == "L" else "RGB",
    )


def _files(plan: Plan, model: ImageModel) -> list[bytes]:
    if plan.folder is not None:
        return from_folder(Path(plan.folder))
    return generated(model.colour, plan.sizes or ((model.height, model.width),))


def _field(file: bytes) -> bytes:
    # The field `images` has the same number in both requests.
    return pb.ClassifyRequest(images=[pb.Image(encoded=file)]).SerializeToString()


def _reader(task: str, model: int) -> Callable[[bytes], Outcome]:
    def read(answer: bytes) -> Outcome:
        results = (
            read_classifications(pb.ClassifyResponse.FromString(answer))
            if task == "classification"
            else read_segmentations(pb.SegmentResponse.FromString(answer))
        )
        timings = tuple(result.timings for result in results if not isinstance(result, ServerError))
        refused = tuple(refusal(result) for result in results if isinstance(result, ServerError))
        return Outcome(model, len(timings), timings, refused)

    return read
