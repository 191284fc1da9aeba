"""The answers of convoy.v1.Vision as JSON, with the names of vision.proto, and as predictions of KServe."""

import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from convoy.service import metrics
from convoy.service.errors import ConvoyError
from convoy.service.frontend.rest.nested import shortest
from convoy.service.frontend.rest.refusals import STATUS
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

PNG = "image/png"
SECONDS = 1e-7  # that a byte of an answer takes to become JSON
FAST = 1  # the level of zlib that takes least time

Write = Callable[[bytes], bytes]  # of JSON, from an encoded answer

_TIMINGS = (*(f"{stage}_seconds" for stage in (*metrics.STAGES, "total")), "batch_size")
_ERRORS = {kind.reason: kind for kind in STATUS}


def classified(answer: bytes) -> bytes:
    """Returns an encoded ClassifyResponse as JSON."""
    response = pb.ClassifyResponse.FromString(answer)
    results = [
        _error(result.error) if result.HasField("error") else {"labels": labels, "timings": _timings(result.timings)}
        for result, labels in zip(response.results, _labels(response), strict=True)
    ]
    return _answer(response, results)


def segmented(answer: bytes) -> bytes:
    """Returns an encoded SegmentResponse, whose masks are run lengths, as JSON."""
    response = pb.SegmentResponse.FromString(answer)
    results = [
        _error(result.error)
        if result.HasField("error")
        else {**_class_map(result.segmentation), "timings": _timings(result.timings)}
        for result in response.results
    ]
    return _answer(response, results)


def predicted_labels(answer: bytes) -> bytes:
    """Returns an encoded ClassifyResponse as predictions. Raises the error of the first image that has one."""
    response = pb.ClassifyResponse.FromString(answer)
    _raise_first(result.error for result in response.results)
    return msgspec.json.encode({"predictions": [{"labels": labels} for labels in _labels(response)]})


def predicted_masks(answer: bytes) -> bytes:
    """Returns an encoded SegmentResponse, whose masks are PNG files, as predictions. Raises as `predicted_labels`."""
    response = pb.SegmentResponse.FromString(answer)
    _raise_first(result.error for result in response.results)
    predictions = []
    for result in response.results:
        pixels: dict[str, int] = {}
        for entry in result.segmentation.class_pixels:
            pixels[entry.name] = pixels.get(entry.name, 0) + entry.pixels  # two classes may have one name
        predictions.append({"mask_png": base64(result.segmentation.mask), "class_pixels": pixels})
    return msgspec.json.encode({"predictions": predictions})


def base64(data: bytes) -> dict[str, str]:
    """Returns a file in JSON."""
    return {"b64": b64encode(data).decode("ascii")}


def _answer(response: pb.ClassifyResponse | pb.SegmentResponse, results: list[Any]) -> bytes:
    return msgspec.json.encode({"model": response.model, "version": response.version, "results": results})


def _labels(response: pb.ClassifyResponse) -> list[list[dict[str, Any]]]:
    """Returns the labels of each result; [] for one without."""
    probabilities = [label.probability for result in response.results for label in result.classification.labels]
    short = iter(shortest(np.array(probabilities, np.float32)))
    return [
        [
            {"index": label.index, "name": label.name, "probability": next(short)}
            for label in result.classification.labels
        ]
        for result in response.results
    ]


def _class_map(segmentation: pb.Segmentation) -> dict[str, Any]:
    height, width = segmentation.height_px, segmentation.width_px
    found = {
        "height_px": height,
        "width_px": width,
        "class_pixels": [
            {"class_index": entry.class_index, "name": entry.name, "pixels": entry.pixels}
            for entry in segmentation.class_pixels
        ],
        "run_lengths": [
            {"class_index": run.class_index, "counts": run.counts.decode("ascii")} for run in segmentation.run_lengths
        ],
    }
    if segmentation.confidence:
        grey = Image.frombuffer("L", (width, height), segmentation.confidence)
        file = io.BytesIO()
        grey.save(file, "PNG", compress_level=FAST)
        found["confidence_png"] = base64(file.getvalue())
    return found


def _timings(timings: pb.Timings) -> dict[str, Any]:
    return {name: getattr(timings, name) for name in _TIMINGS}


def _error(error: pb.ImageError) -> Mapping[str, str]:
    return {"error": error.message, "reason": error.reason}


def _raise_first(errors: Iterable[pb.ImageError]) -> None:
    for number, error in enumerate(errors):
        if error.code:
            raise _ERRORS.get(error.reason, ConvoyError)(f"instances[{number}]: {error.message}")
