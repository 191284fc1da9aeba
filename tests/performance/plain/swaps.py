"""Which names of which modules each variant of the server replaces, and by what.

A process with a variant's `environment` loads the modules as they are and then replaces these names in them: the
product has no switch for it. Nothing of the product is imported before the module in question has been.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "CONVOY_PLAIN"  # environment variable: the variant

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[2]

# Takes the module as it is; returns the replacements by name, with dots for what is inside.
Replacements = Callable[[Any], Mapping[str, Any]]


def environment(variant: str = "") -> dict[str, str]:
    """Returns the environment variables of a process with this variant; of the product itself without one."""
    path = os.pathsep.join(filter(None, (str(_FOLDER), str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, VARIABLE: variant}


def swapped(variant: str) -> Iterable[str]:
    """Returns the modules of which a variant replaces something."""
    return SWAPS[variant].keys()


def swap(variant: str, module: ModuleType) -> None:
    """Replaces what the variant replaces. Raises AttributeError for a name that the module does not have."""
    for name, plain in SWAPS[variant][module.__name__](module).items():
        attrgetter(name)(module)
        inside, _, last = name.rpartition(".")
        setattr(attrgetter(inside)(module) if inside else module, last, plain)


def _nothing(*arguments: Any, **more: Any) -> None:
    """Instead of what only counts, learns or prepares."""


def _whole_messages(wire: Any) -> Mapping[str, Any]:
    """Protobuf parses the whole message."""
    from google.protobuf.message_factory import GetMessageClass

    from convoy.service.errors import BadRequest

    class Parser:
        has_payloads = False

        def __init__(self, message: Any, path: str | None) -> None:
            self._class = GetMessageClass(message)
            self._name = message.full_name

        def parse(self, data: bytes) -> tuple[Any, Mapping[int, memoryview]]:
            try:
                return self._class.FromString(data), wire.NOTHING
            except Exception:
                raise BadRequest(f"request is not a {self._name} message") from None

    return {"Parser": Parser}


def _messages(encoding: Any) -> Mapping[str, Any]:
    """Responses are protobuf messages, and nothing of them is encoded in advance."""
    from convoy.service import metrics
    from convoy.service.pb.convoy.v1 import vision_pb2 as pb

    class Labels:
        def __init__(self, names: Sequence[str]) -> None:
            self._names = names

        def result(self, indices: Iterable[int], probabilities: Iterable[float], timings: pb.Timings) -> Any:
            labels = [
                pb.Label(index=index, name=self._names[index], probability=probability)
                for index, probability in zip(indices, probabilities, strict=True)
            ]
            return pb.ClassifyResult(classification=pb.Classification(labels=labels), timings=timings)

    fields = [f"{stage}_seconds" for stage in (*metrics.STAGES, "total")]

    def timings(seconds: Sequence[float], batch_size: int) -> pb.Timings:
        return pb.Timings(**dict(zip(fields, seconds, strict=True)), batch_size=batch_size)

    def response(model: str, version: int, results: Sequence[Any]) -> bytes:
        # The error of an image arrives encoded.
        parsed = [pb.ClassifyResult.FromString(each) if isinstance(each, bytes) else each for each in results]
        return pb.ClassifyResponse(model=model, version=version, results=parsed).SerializeToString()

    return {"Labels": Labels, "timings": timings, "response": response}


class _OwnValues(ModuleType):
    """prometheus_client's module of values, in which nobody replaces the class of a value."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "ValueClass":
            super().__setattr__(name, value)


def _public_counters(metrics: Any) -> Mapping[str, Any]:
    """Each request and image is counted with prometheus_client's public methods alone."""

    def count_request(model: str, version: str, method: str, code: str, seconds: float) -> None:
        metrics.REQUEST_DURATION.labels(model, version, method, code).observe(seconds)

    def count_images(model: str, version: str, images: int, seconds: Sequence[float]) -> None:
        metrics.IMAGES.labels(model, version).inc(images)
        for stage, span in zip(metrics.STAGES, seconds, strict=True):
            histogram = metrics.STAGE_DURATION.labels(model, version, stage)
            for _ in range(images):
                histogram.observe(span)

    return {"count_request": count_request, "count_images": count_images}


def _high_bytes(png: Any) -> Mapping[str, Any]:
    """Of 16-bit samples the high byte: what Pillow reads of colours, and the nearest that it offers of grey."""
    import numpy as np
    from PIL import Image

    exact = png.read_image

    def read_image(data: bytes, structure: Any) -> Image.Image:
        if structure.bits != 16:
            plain: Image.Image = exact(data, structure)
            return plain
        image = Image.open(BytesIO(data))
        image.load()
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image

    return {"read_image": read_image}


def _grpcio(choice: Any) -> Callable[..., Any]:
    def grpcio(*, fall_back: bool) -> Any:
        return choice._grpcio()

    return grpcio


def _uncounted(metrics: Any) -> Mapping[str, Any]:
    return dict.fromkeys(
        ("Counter.inc", "Gauge.inc", "Gauge.dec", "Gauge.set", "Histogram.observe"),
        _nothing,
    )


def _untimed(call: Any) -> Mapping[str, Any]:
    nothing = [0.0] * (len(call.metrics.STAGES) + 1)
    return {"observe": lambda *arguments, **more: nothing}


SWAPS: Mapping[str, Mapping[str, Replacements]] = {
    "grpcio": {"convoy.service.frontend.transport.choice": lambda choice: {"_nghttp2": _grpcio(choice)}},
    "alone": {"convoy.service.frontend.coalescing": lambda _: {"pays": lambda row: False}},
    "parsing": {"convoy.service.frontend.wire": _whole_messages},
    "landing": {"convoy.service.frontend.landing": lambda _: {"Landings.land": _nothing}},
    "responses": {"convoy.service.frontend.encoding": _messages},
    "outlook": {
        "convoy.service.frontend.admission": lambda _: {"Outlook.check": _nothing, "Outlook.learn": _nothing},
    },
    "start": {"convoy.service.supervisor.processes": lambda _: {"Processes.start_ahead": _nothing}},
    "process id": {"prometheus_client.values": lambda _: {"__class__": _OwnValues}},
    "counting": {"convoy.service.metrics": _public_counters},
    "16 bits": {"convoy.service.images.png": _high_bytes},
    # Counts and times nothing at all.
    "unobserved": {
        "prometheus_client.metrics": _uncounted,
        "convoy.service.metrics": lambda _: {"count_request": _nothing},
        "convoy.service.frontend.call": _untimed,
    },
}
