"""Reading of files that somebody else wrote: regular files only, inside one folder, never waiting for a writer."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convoy.service.errors import BadModelFile


@contextmanager
def opened(file: Path, root: Path) -> Iterator[int]:
    """Opens a file for reading and yields its descriptor. Symbolic links are followed as long as they end in `root`.

    Raises BadModelFile if the file is not a regular one or lies elsewhere, and OSError. The message has no path but
    the file's name.
    """
    # Looking first: opening a device may have effects. Looking again afterwards: the file may have been exchanged.
    if not stat.S_ISREG(file.stat().st_mode):
        raise BadModelFile(f"{file.name} is not a regular file")
    # Without waiting: a FIFO in its place would wait for a writer for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadModelFile(f"{file.name} is not a regular file")
        # The kernel knows where the open file lies, whatever happens to the links meanwhile.
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not target.is_relative_to(os.path.realpath(root)):
            raise BadModelFile(f"{file.name} is a link out of the repository: copy the file to its place")
        yield descriptor
    finally:
        os.close(descriptor)


def read(file: Path, root: Path, most: int) -> bytes:
    """The content of a small file. Raises as `opened` does, and BadModelFile if it has more than `most` bytes."""
    with opened(file, root) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise BadModelFile(f"{file.name} has more than {most} bytes")
    return data
