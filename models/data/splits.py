"""Which split a picture belongs to, where nobody says."""

import hashlib
import os
from collections.abc import Sequence

from convoy.models.data.dataset import SplitName
from convoy.models.data.names import one

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


def share(name: str) -> SplitName:
    """The split of a picture of that name: about 70 % train, 10 % validation, 20 % test.

    The name alone decides, by its SHA-256: a picture keeps its split when others are added or taken away.
    """
    place = _place(name)
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def shares(groups: Sequence[Sequence[str]]) -> dict[str, SplitName]:
    """The split of each name: that of `share`, but that of every group at least one is to train with and one to test
    with, and of all of them one to validate with, as far as there are names.

    A group are the names of one class, or all where no picture has one class alone. Where there is nothing in a split,
    the name that is nearest to it goes there, so few names do not keep their split when others are added.
    """
    found = {name: share(name) for group in groups for name in group}
    for group in groups:
        ordered = sorted(group, key=_place)
        if len(group) > 1:
            found[ordered[0]] = "test"  # as it was where any is
            if all(found[name] != "train" for name in group):
                found[ordered[-1]] = "train"
    if "validation" not in found.values():
        training = [[name for name in group if found[name] == "train"] for group in groups]
        spare = [name for names in training if len(names) > 1 for name in names]
        if spare:
            found[min(spare, key=_place)] = "validation"
    return found


def validating(names: Sequence[str]) -> list[bool]:
    """Of pictures to train with, which are put aside to validate with: about one in ten, and one at least.

    For where the test pictures are given and those to validate with are not; the name alone decides, as in `share`.
    """
    places = [_place(name) for name in names]
    bound = max(VALIDATION_SHARE, min(places, default=0.0))
    return [place <= bound for place in places]


def _place(name: str) -> float:
    """0..1, evenly."""
    # The bytes of the name, which need not be UTF-8; the same ones on a Mac, which writes accents in another way.
    return int.from_bytes(hashlib.sha256(os.fsencode(one(name))).digest()[:8]) / 2**64
