"""Which split a picture belongs to, where nobody says."""

import hashlib
from collections.abc import Sequence

from models.data.dataset import SplitName

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


def share(name: str) -> SplitName:
    """The split of a picture of that name: about 70 % train, 10 % validation, 20 % test.

    The name alone decides, by its SHA-256: a picture keeps its split when others are added or taken away.
    """
    place = _place(name)
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def validating(names: Sequence[str]) -> list[bool]:
    """Of pictures to train with, which are put aside to validate with: about one in ten, and one at least.

    For where the test pictures are given and those to validate with are not; the name alone decides, as in `share`.
    """
    places = [_place(name) for name in names]
    bound = max(VALIDATION_SHARE, min(places, default=0.0))
    return [place <= bound for place in places]


def _place(name: str) -> float:
    """0..1, evenly."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
