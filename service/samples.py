"""Sample pictures beside a model file: `<model>/<version>/samples/1.png`, for people who want to try the model."""

import os
from pathlib import Path

from convoy.service import files
from convoy.service.errors import BadModelFile

FOLDER = "samples"
MOST = 8  # pictures of a version
MOST_BYTES = 64 << 10  # of one

_KINDS = {".png": ("image/png", b"\x89PNG\r\n\x1a\n"), ".jpg": ("image/jpeg", b"\xff\xd8\xff")}


def count(own: Path) -> int:
    """Returns how many samples are beside the file in a version's folder, numbered from 1 without a gap."""
    folder = own / FOLDER
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return 0
    number = 0
    while number < MOST and any(f"{number + 1}{suffix}" in names for suffix in _KINDS):
        number += 1
    return number


def read(root: Path, own: Path, number: int) -> tuple[str, bytes] | None:
    """Returns the media type and the content of a sample; None if there is none that may be shown.

    It is a regular file inside its version's folder, wherever links lead, small, and begins as its name says.

    root  the folder that the version's own must be in
    own   that in which the version's file is
    """
    try:
        if not Path(os.path.realpath(own)).is_relative_to(os.path.realpath(root)):
            return None
        for suffix, (media_type, signature) in _KINDS.items():
            file = own / FOLDER / f"{number}{suffix}"
            if file.exists():
                data = files.read(file, own, MOST_BYTES)
                return (media_type, data) if data.startswith(signature) else None
    except (OSError, BadModelFile):
        pass
    return None
