"""Images in tar shards: where each lies, found in one pass without unpacking, and its bytes.

A member's name is an id, never a path: nothing is written under it.
"""

import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO

from convoy.service.client.pictures import is_called_picture
from convoy.service.errors import BadConfig, BadImage
from convoy.service.images.names import is_data
from convoy.service.scoring.entries import Entry, Member, Refused, text
from convoy.service.scoring.folders import MOST_BYTES, read_at

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP = b"\x1f\x8b"
_BLOCK = 512
_MOST_UNPACKED = 2  # compressed tars at a time: threads that read ahead cross from one to the next
_STEP = 1 << 20  # bytes
_opening = Lock()  # threads that come to a tar at once share it
# tarfile lets through what its parsers raise for malformed headers, and recurses for each that extends the next.
_BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError, RecursionError)


def is_called_tar(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def members(name: str, path: str) -> Iterator[Entry]:
    """The images of the tar at `path`, in its order; ids begin with `name`. Skips what has no name of an image.

    Raises BadConfig for what is no tar, and at the end of one that is cut off or damaged.
    """
    try:
        with Path(path).open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            yield from _members(name, path, gzip.GzipFile(fileobj=file) if packed else file)
    except _BROKEN as error:
        raise BadConfig(
            f"tar {name!r} is cut off, damaged or no tar ({' '.join(str(error).split())[:100]}): pack it again"
        ) from None


def read(place: Member) -> bytes:
    """Raises OSError, and BadImage if the tar has become shorter."""
    descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, 2, 0) != _GZIP:
            data = read_at(descriptor, place.offset, place.size)
        else:
            status = os.fstat(descriptor)
            with _opening:
                archive = _unpacked(place.path, status.st_mtime_ns, status.st_size)
            data = archive.read(place.offset, place.size)
    except _BROKEN:
        data = b""
    finally:
        os.close(descriptor)
    if len(data) != place.size:
        raise BadImage(f"the tar ends before byte {place.offset + place.size}: it has changed since it was listed")
    return data


def _members(name: str, path: str, file: "IO[bytes] | gzip.GzipFile") -> Iterator[Entry]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them
            if not member.isdir() and _is_picture(member.name):
                yield Entry(text(f"{name}!{member.name}"), _place(path, member))
        # tarfile takes the end of the file, and any damage, for the end of the tar.
        file.seek(archive.offset)
        end = file.read(_BLOCK)
    if end != bytes(_BLOCK):
        raise tarfile.ReadError(f"no header at byte {archive.offset}")


def _is_picture(name: str) -> bool:
    path = PurePosixPath(*(part for part in PurePosixPath(name).parts if part != ".."))
    return is_called_picture(path.name) and is_data(path)


def _place(path: str, member: tarfile.TarInfo) -> Member | Refused:
    if not member.isreg() or member.issparse():
        return Refused("it has no bytes of its own in the tar, want a file and no link")
    if member.size > MOST_BYTES:
        return Refused(f"it has {member.size} bytes, want at most {MOST_BYTES}")
    return Member(path, member.offset_data, member.size)


class _Unpacked:
    """A compressed tar that is unpacked as far as it has been read, into a file without a name. Locked: `_grow`."""

    def __init__(self, path: str) -> None:
        self._lock = Lock()
        self._source = gzip.open(path)  # noqa: SIM115  open as long as this is
        self._target = tempfile.TemporaryFile()  # noqa: SIM115
        self._size = 0

    def read(self, offset: int, size: int) -> bytes:
        self._grow(offset + size)
        return read_at(self._target.fileno(), offset, size)

    def _grow(self, size: int) -> None:
        with self._lock:
            while self._size < size and (data := self._source.read(_STEP)):
                self._target.write(data)
                self._size += len(data)
            self._target.flush()


# As long as the file is the same.
@lru_cache(maxsize=_MOST_UNPACKED)
def _unpacked(path: str, changed_ns: int, size: int) -> _Unpacked:
    return _Unpacked(path)
