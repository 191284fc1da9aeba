"""What decoding costs, beside the bare decoder, and beside itself where it decodes no more than the input needs."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg

from convoy.models.data.builtin import digits
from convoy.service.engine import session as sessions
from convoy.service.engine.session import Session
from convoy.service.images.decode import decode, whole
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import reduction
from tests.performance import models
from tests.performance.figure import Figure
from tests.performance.trials import in_turns, ratio
from tests.service.frontend.test_reduction import LIMIT, at_input, photograph

FACTORS = (2, 4)  # by how much larger than the input pictures are
WANTED = {2: 1.8, 4: 2.5}


def decoding(root: Path, pairs: int) -> list[Figure]:
    """P14."""
    return [over_bare(pairs), *(reduced(factor, pairs) for factor in FACTORS), *same_answers(root)]


def over_bare(pairs: int) -> Figure:
    """CPU time of a decoded photograph, over that of the decoder alone."""
    data = photograph(480, 640)
    ours, theirs = in_turns(
        lambda: cpu_of(lambda: decode(data, "RGB", LIMIT, whole)),
        lambda: cpu_of(lambda: simplejpeg.decode_jpeg(data, "RGB")),
        3 * pairs,
    )
    found = ratio(ours, theirs)
    what = "CPU time of decoding a JPEG of 640x480, divided by simplejpeg's"
    return Figure("P14", what, "<= 1.03", str(found), found.median <= 1.03)


def reduced(factor: int, pairs: int) -> Figure:
    """CPU time of decoding and resizing all pixels, over that of decoding what the input needs."""
    data, taken = photograph(224 * factor, 224 * factor), input_of(224)
    ours, theirs = in_turns(
        lambda: cpu_of(lambda: at_input(data, taken, whole)),
        lambda: cpu_of(lambda: at_input(data, taken, partial(reduction, taken))),
        3 * pairs,
    )
    found = ratio(ours, theirs)
    what = f"CPU time of decoding and resizing a JPEG with sides {factor} times the input's, in full divided by reduced"
    return Figure("P14", what, f">= {WANTED[factor]}", str(found), found.median >= WANTED[factor])


def same_answers(root: Path) -> list[Figure]:
    """Whether a trained network answers the same: LeNet-5 asked for handwriting that it has not learned from, written
    larger than its input. Beside it, what saving the picture once more changes."""
    session = sessions.load(models.trained(root, "lenet5"), "cpu", 0, 0)
    assert session.document is not None
    taken = session.document.image
    unseen = [*digits.indices("validation"), *digits.indices("test")]
    return [_same_answers(session, taken, unseen, factor) for factor in FACTORS]


def _same_answers(session: Session, taken: InputSpec, unseen: Sequence[int], factor: int) -> Figure:
    answers: dict[str, list[int]] = {"whole": [], "reduced": [], "again": []}
    for stroke in unseen:
        pixels, _ = digits.draw(stroke, factor * digits.SIDE)
        data = simplejpeg.encode_jpeg(pixels, quality=90, colorspace="GRAY")
        again = simplejpeg.encode_jpeg(decode(data, "L", LIMIT, whole).pixels, quality=85, colorspace="GRAY")
        for way, source, how in (
            ("whole", data, whole),
            ("reduced", data, partial(reduction, taken)),
            ("again", again, whole),
        ):
            (probabilities,) = session.run([at_input(source, taken, how)[0][None]])
            answers[way].append(int(np.argmax(probabilities)))
    share, other = (float(np.mean(np.equal(answers["whole"], answers[way]))) for way in ("reduced", "again"))
    what = (
        f"same class decoded in full and reduced: {len(unseen)} JPEGs of digits with sides {factor} times the input's, "
        "trained LeNet-5"
    )
    return Figure(
        "P14", what, ">= 99.8 %", f"{share:.1%}; {other:.1%} in full and saved as JPEG once more", share >= 0.998
    )


def input_of(side: int) -> InputSpec:
    return InputSpec(colour="RGB", height=side, width=side, fit="crop")


def cpu_of(action: Callable[[], object], times: int = 20) -> float:
    """Seconds of CPU time."""
    begin = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - begin) / times
