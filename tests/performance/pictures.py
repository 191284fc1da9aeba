"""What decoding costs, beside the bare decoder, and beside itself where it decodes no more than the input needs."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from service.engine import session as sessions
from service.frontend.decode import decode, whole
from service.frontend.preprocess import reduction
from service.metadata import InputSpec
from tests.performance import models
from tests.performance.figure import Figure
from tests.performance.trials import in_turns, ratio
from tests.service.frontend.test_reduction import LIMIT, at_input, photograph

IMAGES = {2: 200, 4: 100}  # whose answers are compared, by how much larger than the input they are
WANTED = {2: 1.8, 4: 2.5}


def decoding(root: Path, pairs: int) -> list[Figure]:
    """P14."""
    return [over_bare(pairs), *(reduced(factor, pairs) for factor in IMAGES), *same_answers(root)]


def over_bare(pairs: int) -> Figure:
    """CPU time of a decoded photograph, over that of the decoder alone."""
    data = photograph(480, 640)
    ours, theirs = in_turns(
        lambda: cpu_of(lambda: decode(data, "RGB", LIMIT, whole)),
        lambda: cpu_of(lambda: simplejpeg.decode_jpeg(data, "RGB")),
        3 * pairs,
    )
    found = ratio(ours, theirs)
    what = "CPU time of decoding a JPEG of 640x480, over simplejpeg alone"
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
    what = (
        f"CPU time of decoding and resizing all of a JPEG {factor} times the input's size, over that of what is needed"
    )
    return Figure("P14", what, f">= {WANTED[factor]}", str(found), found.median >= WANTED[factor])


def same_answers(root: Path) -> list[Figure]:
    """Whether a network answers the same. Its weights are random, so that its answers lie much closer together than a
    trained network's, and its probabilities are evened out over the images, or it would answer all of them alike.
    Beside it, what saving the photograph once more changes.
    """
    session = sessions.load(models.real(root, "mobilenet"), "cpu", 0, 0)
    assert session.document is not None
    taken = session.document.image
    found = []
    for factor, count in IMAGES.items():
        ways: dict[str, list[NDArray[np.float32]]] = {"whole": [], "reduced": [], "again": []}
        for number in range(count):
            data = photograph(224 * factor + number % 20, 224 * factor + number // 20)
            again = simplejpeg.encode_jpeg(decode(data, "RGB", LIMIT, whole).pixels, quality=85)
            for way, source, how in (
                ("whole", data, whole),
                ("reduced", data, partial(reduction, taken)),
                ("again", again, whole),
            ):
                (probabilities,) = session.run([at_input(source, taken, how)[0][None]])
                ways[way].append(np.log(probabilities[0]))
        usual = np.mean(ways["whole"], axis=0)
        tops = {way: np.argmax(np.array(logs) - usual, axis=1) for way, logs in ways.items()}
        share, other = (float(np.mean(tops["whole"] == tops[way])) for way in ("reduced", "again"))
        what = f"same top-1 with and without, {count} generated photographs {factor} times the input's size; "
        note = (
            f"{share:.1%}, over {len(set(tops['whole'].tolist()))} answers; {other:.1%} where they were saved once more"
        )
        found.append(Figure("P14", what + "MobileNet v1, random weights", ">= 99.8 %", note, share >= 0.998))
    return found


def input_of(side: int) -> InputSpec:
    return InputSpec(colour="RGB", height=side, width=side, fit="crop")


def cpu_of(action: Callable[[], object], times: int = 20) -> float:
    """Seconds of CPU time."""
    begin = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - begin) / times
