"""Which split a picture belongs to, where nobody says."""

import hashlib

from models.data.dataset import SplitName

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


def share(name: str) -> SplitName:
    """The split of a picture of that name: about 70 % train, 10 % validation, 20 % test.

    The name alone decides, by its SHA-256: a picture keeps its split when others are added or taken away.
    """
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"
