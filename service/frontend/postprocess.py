"""Converts a network's outputs for one image to its caller's result: ranked labels, or a class map."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from convoy.service.declared import out_of_range
from convoy.service.errors import BadRequest, RunFailed
from convoy.service.metadata import PROBABILITIES, Document, default_palette
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import Placement, restore

DEFAULT_TOP_K = 5
_FEW_CLASSES = 64  # Python sorts this many in less time than numpy takes to begin


class Ranking(NamedTuple):
    """The most probable classes of one image, the most probable first."""

    indices: Sequence[int]
    probabilities: Sequence[float]


def rankings(
    probabilities: NDArray[np.float32],
    classes: int,
    top_k: int,
    failed: Mapping[int, RunFailed] = MappingProxyType({}),
) -> list[Ranking | RunFailed]:
    """Returns each image's `top_k` most probable classes (0: five; at most all), ties in the order of the classes.

    probabilities  (N, classes), 0..1
    failed         the errors of images that have no probabilities

    Returns RunFailed for those, and for images whose probabilities are not all within 0..1. Raises RunFailed if
    there is not one probability for each class.
    """
    if probabilities.shape[1:] != (classes,):
        raise RunFailed(f"the network answered {probabilities[0].size} probabilities for {classes} labels")
    count = min(top_k or DEFAULT_TOP_K, classes)
    ranked = _ranked_few if classes <= _FEW_CLASSES else _ranked_many
    if out_of_range(PROBABILITIES, probabilities):  # one look at all of them
        wrong = [out_of_range(PROBABILITIES, row) for row in probabilities]
        failed = {number: RunFailed(reason) for number, reason in enumerate(wrong) if reason} | dict(failed)
    if failed:
        return [failed.get(number) or ranked(row, count) for number, row in enumerate(probabilities)]
    return [ranked(row, count) for row in probabilities]


def _ranked_few(row: NDArray[np.float32], count: int) -> Ranking:
    values = row.tolist()
    # Equal values keep their order, also in reverse.
    indices = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:count]
    return Ranking(indices, [values[index] for index in indices])


def _ranked_many(row: NDArray[np.float32], count: int) -> Ranking:
    # Only candidates for the first places are sorted, including all that tie with the last place.
    least = np.partition(row, -count)[-count]
    candidates = np.flatnonzero(row >= least)
    indices = candidates[np.argsort(-row[candidates], kind="stable")][:count]
    return Ranking(indices.tolist(), row[indices].tolist())


def segmentation(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.uint8] | None,
    document: Document,
    placement: Placement,
    format: pb.MaskFormat,  # noqa: A002 (the field's name on the wire)
) -> pb.Segmentation:
    """Returns the class map at the size of the image that was sent, in the requested format.

    mask        (h, w), a class index per pixel, at the size of the input
    confidence  (h, w), 0..255, or None if not requested

    Raises RunFailed if the network returned a class without a label.
    """
    classes = np.ascontiguousarray(restore(mask, placement))
    # Pillow counts bytes directly; np.bincount would first convert each to 8 bytes, and takes five times as long.
    counts = Image.fromarray(classes).histogram()
    present = [index for index, pixels in enumerate(counts) if pixels]
    if present[-1] >= len(document.labels):
        raise RunFailed(f"the network answered class {present[-1]}, its metadata name {len(document.labels)} classes")
    answer = pb.Segmentation(
        height_px=placement.source_height,
        width_px=placement.source_width,
        format=format or pb.MASK_FORMAT_RAW,
        class_pixels=[
            pb.ClassPixels(class_index=index, name=name, pixels=counts[index])
            for index, name in enumerate(document.labels)
        ],
    )
    if answer.format == pb.MASK_FORMAT_RAW:
        answer.mask = classes.tobytes()
    elif answer.format == pb.MASK_FORMAT_PNG:
        answer.mask = _palette_png(classes, document.palette or default_palette(len(document.labels)))
    elif answer.format == pb.MASK_FORMAT_RLE:
        answer.run_lengths.extend(_run_lengths(classes, present))
    else:
        raise BadRequest(f"format is {format}, want one of {', '.join(pb.MaskFormat.keys())}")
    if confidence is not None:
        restored = np.ascontiguousarray(restore(confidence, placement))
        grey_png = answer.format == pb.MASK_FORMAT_PNG
        answer.confidence = _png(Image.fromarray(restored)) if grey_png else restored.tobytes()
    return answer


def _palette_png(classes: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> bytes:
    height, width = classes.shape
    image = Image.frombuffer("P", (width, height), classes)
    image.putpalette([value for colour in palette for value in colour])
    return _png(image)


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _run_lengths(classes: NDArray[np.uint8], present: Sequence[int]) -> list[pb.RunLengths]:
    columns = np.asfortranarray(classes)[:, :, None]  # COCO counts in column order
    return [
        pb.RunLengths(class_index=index, counts=coco.encode((columns == index).view(np.uint8))[0]["counts"])
        for index in present
    ]
