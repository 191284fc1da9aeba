"""Assignment of images to splits, for data that does not specify them."""

import hashlib
import os
from collections.abc import Sequence

from convoy.models.data.dataset import SplitName
from convoy.models.data.names import one

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


def share(name: str) -> SplitName:
    """Returns the split of an image by its name: about 70 % train, 10 % validation, 20 % test.

    It depends only on the name's SHA-256: an image keeps its split when others are added or removed.
    """
    place = _place(name)
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def shares(groups: Sequence[Sequence[str]]) -> dict[str, SplitName]:
    """Returns the split of each name: that of `share`, adjusted so that every group has at least one name in train and
    one in test, and all groups together have at least one in validation, if there are enough names.

    A group contains the names of one class, or all names if images do not have a single class. An empty split receives
    the name nearest to it, so in small groups names may change their split when others are added.
    """
    found = {name: share(name) for group in groups for name in group}
    for group in groups:
        ordered = sorted(group, key=_place)
        if len(group) > 1:
            found[ordered[0]] = "test"  # unchanged if the group had a test name already
            if all(found[name] != "train" for name in group):
                found[ordered[-1]] = "train"
    if "validation" not in found.values():
        training = [[name for name in group if found[name] == "train"] for group in groups]
        spare = [name for names in training if len(names) > 1 for name in names]
        if spare:
            found[min(spare, key=_place)] = "validation"
    return found


def validating(names: Sequence[str]) -> list[bool]:
    """Returns which training images to set aside for validation: about one in ten, and at least one.

    For data that provides test images but no validation images. It depends only on the name, as in `share`.
    """
    places = [_place(name) for name in names]
    bound = max(VALIDATION_SHARE, min(places, default=0.0))
    return [place <= bound for place in places]


def _place(name: str) -> float:
    """Returns a uniformly distributed number, 0..1."""
    # The bytes of the name, which may not be UTF-8; with `one`, equal on a Mac, which writes accents in another form.
    return int.from_bytes(hashlib.sha256(os.fsencode(one(name))).digest()[:8]) / 2**64
