"""Images as files: of a folder and those below it, and of a pattern."""

import glob
import os
import stat
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

from convoy.service.client.pictures import is_called_picture
from convoy.service.errors import BadConfig, BadImage
from convoy.service.images.names import is_data

MOST_BYTES = 256 << 20  # of an image file
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO would wait for a writer for ever


class _Folder(NamedTuple):
    """What is left of a folder: `names` in reverse order, and which of them are folders."""

    path: str
    names: list[str]
    folders: set[str]


def walk(folder: str) -> Iterator[str]:
    """The regular files in a folder and below it, and links to such, by name: those that `train` would see too. Hidden
    files and those of operating systems are skipped, links to folders not followed. Dangling links are among them.

    Raises BadConfig for a folder that cannot be read: its images would be missing.
    """
    above = [_scanned(folder)]
    while above:
        path, names, folders = above[-1]
        if not names:
            above.pop()
            continue
        name = names.pop()
        each = os.path.join(path, name)
        if name in folders:
            above.append(_scanned(each))
        else:
            yield each


def matching(pattern: str) -> Iterator[str]:
    """The files that a pattern matches, by name, without hidden ones; ** matches any number of folders."""
    named = PurePath(pattern).parts
    for path in sorted(glob.iglob(pattern, recursive=True)):
        others = [part for part in PurePath(path).parts if part not in named]
        if is_data(PurePath(*others)) and _may_be_file(path):
            yield path


def is_picture(path: str) -> bool:
    """Whether a file is called as an image is; what is in it is seen when it is read."""
    return is_called_picture(path)


def read(path: str) -> bytes:
    """The bytes of a regular file. Raises OSError, and BadImage for what is none, or too large to be an image."""
    try:
        descriptor = os.open(path, _FLAGS)
    except ValueError:
        raise BadImage("its path has a zero byte in it") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("it is a folder or a device, want a file")
        if status.st_size > MOST_BYTES:
            raise BadImage(f"the file has {status.st_size} bytes, want at most {MOST_BYTES}")
        return read_at(descriptor, 0, status.st_size)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """The bytes from `offset`; fewer if the file ends before."""
    parts = []
    while size and (part := os.pread(descriptor, size, offset)):  # at most 2 GB at a time
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def beside(table: str, path: str) -> str:
    """A path that a table contains: relative to the folder of the table."""
    return os.path.join(os.path.dirname(table), path)


def _scanned(path: str) -> _Folder:
    names, folders = list[str](), set[str]()
    try:
        with os.scandir(path) as found:
            for each in found:
                if not is_data(PurePath(each.name)):
                    continue
                if each.is_dir(follow_symlinks=False):
                    folders.add(each.name)
                elif not each.is_file() and not _may_be_file(each.path):
                    continue
                names.append(each.name)
    except OSError as error:
        raise BadConfig(f"folder {path!r} cannot be read: {error.strerror}") from None
    names.sort(reverse=True)
    return _Folder(path, names, folders)


def _may_be_file(path: str) -> bool:
    """Whether it is a regular file, or a link to one or to nothing."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))
