"""Whether a network's outputs are what its metadata declare: a wrong answer must not pass for a right one.

Values of networks that declare nothing are not checked: theirs may be any, NaN included.
"""

import numpy as np
from numpy.typing import NDArray

from convoy.service.metadata import CONFIDENCE, HEAT_MAP, LOCATION, MASK, PROBABILITIES, SCORE, Document

_ROUNDING = 1e-3  # by which a value may exceed its range
_RANGES = {PROBABILITIES: (0.0, 1.0), HEAT_MAP: (-1.0, 1.0), SCORE: (-1.0, 1.0)}
_TASKS = {"classification": {PROBABILITIES}, "matching": {HEAT_MAP, LOCATION, SCORE}, "segmentation": {MASK}}

Shape = tuple[int, ...]


def shapes(document: Document, outputs: set[str], shape: Shape) -> dict[str, tuple[str, Shape]]:
    """Returns the dtype of each output that is declared, and the shape of its row for an input of `shape`, without N.

    outputs  names of all outputs of the network: a segmenter that ends in an argmax has no confidence
    """
    match document.task:
        case "classification":
            return {PROBABILITIES: ("float32", (len(document.labels),))}
        case "segmentation":
            return {name: ("uint8", shape[:2]) for name in (MASK, CONFIDENCE) if name == MASK or name in outputs}
        case "matching":
            height, width, _ = shape
            places = (height - document.image.min_height + 1, width - document.image.min_width + 1)
            return {HEAT_MAP: ("float32", places), LOCATION: ("int64", (2,)), SCORE: ("float32", ())}


def wrong(document: Document | None, name: str, values: NDArray[np.generic]) -> str:
    """Returns what is wrong with the values of an output, of one row or more; "" if nothing is."""
    if document is None or name not in _TASKS[document.task] or not values.size:
        return ""
    if name == MASK:
        return _wrong_class(int(values.max()), document)
    if name == LOCATION:
        least = values.min()
        return f"the network answered {least} as a row or column" if least < 0 else ""
    return out_of_range(name, values)


def out_of_range(name: str, values: NDArray[np.generic]) -> str:
    """Returns what is wrong with probabilities, similarities or scores; "" if nothing is."""
    low, high = _RANGES[name]
    if values.min() >= low - _ROUNDING and values.max() <= high + _ROUNDING:  # False for NaN
        return ""
    if not np.isfinite(values.astype(np.float64)).all():
        return f"the network answered {_words(name)} that are not numbers"
    return f"the network answered values outside {low:g}..{high:g} as {_words(name)}"


def wrong_rows(document: Document | None, name: str, values: NDArray[np.generic]) -> dict[int, str]:
    """Returns what is wrong with each row, (N, ...), that is wrong."""
    if not wrong(document, name, values):  # one look at all of them
        return {}
    found = ((row, wrong(document, name, values[row : row + 1])) for row in range(len(values)))
    return {row: reason for row, reason in found if reason}


def _wrong_class(highest: int, document: Document) -> str:
    if highest < len(document.labels):
        return ""
    return f"the network answered class {highest}, its metadata name {len(document.labels)} classes"


def _words(name: str) -> str:
    return {PROBABILITIES: "probabilities", HEAT_MAP: "similarities", SCORE: "scores"}[name]
