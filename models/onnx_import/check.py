"""Parity check: compares an adopted network's outputs with those of the original file."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from convoy.models.data.batches import loader
from convoy.models.data.builtin.generated import generated
from convoy.models.errors import ParityRefused
from convoy.models.onnx_import.answer import Answer
from convoy.models.onnx_import.original import Original
from convoy.models.runtime import Session
from convoy.service import metadata
from convoy.service.metadata import InputSpec, Parity

IMAGES = 24
TOGETHER = 3  # batch size of the adopted network
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of probabilities, in float32 and in half precision
MIN_SAME = 0.9999  # share of equal classes, of images or pixels, not counting ties up to rounding


def check(original: Original, running: Session, answer: Answer, spec: InputSpec) -> Parity:
    """Compares both on random images: the file in its own batch size, the result in batches. Raises ParityRefused."""
    largest, same, answers, images = 0.0, 0, 0, 0
    tolerance = HALF_TOLERANCE if original.found.input.dtype == "float16" else TOLERANCE
    for batch in _images(spec):
        given = original.answers(batch)
        found = running.run(None, {metadata.IMAGE: batch})
        difference, right = (
            _indices(given, found)
            if answer.values == "indices"
            else _scores(answer, answer.shares(given), found, tolerance)
        )
        same += int(right.sum())
        largest, answers, images = float(np.max([largest, difference])), answers + right.size, images + len(batch)
    if not largest <= tolerance or same / answers < MIN_SAME:
        raise ParityRefused(
            f"the result does not answer as the file does on {images} images: probabilities differ by up to "
            f"{largest:.3g}, want at most {tolerance:g}; {same / answers:.3%} of classes are equal, want {MIN_SAME:.2%}"
        )
    share, classification = same / answers, answer.task == "classification"
    return Parity(
        images=images,
        max_abs_difference=largest,
        top1_agreement=share if classification else None,
        mask_agreement=None if classification else share,
    )


def _indices(given: NDArray[np.int64], found: list[NDArray[np.uint8]]) -> tuple[float, NDArray[np.bool_]]:
    return 0.0, given.reshape(found[0].shape) == found[0]


def _scores(
    answer: Answer, shares: NDArray[np.float64], found: list[NDArray[np.float32]], tolerance: float
) -> tuple[float, NDArray[np.bool_]]:
    """Returns the largest difference of a probability, and whether each class is correct."""
    if answer.task == "classification":
        difference = np.abs(found[0] - shares).max()
        classes = found[0].argmax(axis=1)
    else:
        # A confidence is rounded to one of 255 steps; a sum slightly above 1 counts as 1.
        best = np.minimum(shares.max(axis=1), 1)
        difference = max(0.0, np.abs(found[1].reshape(-1) / 255 - best).max() - 0.5 / 255)
        classes = found[0].reshape(-1).astype(int)
    # If two probabilities are equal up to rounding, either class may win.
    chosen = np.take_along_axis(shares, classes[:, None], axis=1)[:, 0]
    return float(difference), shares.max(axis=1) - chosen <= tolerance


def _images(spec: InputSpec) -> Iterator[NDArray[np.uint8]]:
    """Yields random textures, preprocessed as in serving, and noise."""
    count = 0
    for images, _ in loader(generated(spec), spec, batch_size=TOGETHER):
        yield images.numpy()
        count += len(images)
        if count >= IMAGES:
            return
