"""Regions of clients' shared memory: opened by name in one folder, checked, and read and written by the descriptor.

Nothing is mapped: a client may cut its memory short at any time, and an access beyond its end would then kill this
process. Reading and writing by the descriptor only fails.
"""

import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service.errors import BadRequest, BadTensor, UnknownRegion, named
from convoy.service.ipc import messages

_FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})")
_RESERVED = ("convoy-", "sem.")  # the server's own folders, and semaphores of the C library
_MOST_OF_A_NAME = 128  # bytes


class Region:
    """A region that is registered. The last reference to it closes its descriptor: a request in flight keeps it."""

    def __init__(self, described: messages.Region, descriptor: int) -> None:
        self.described = described
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def place(self, offset: int, nbytes: int, what: str) -> "Place":
        """Returns a part of the region. Raises BadTensor, naming `what`, if it is not within the region."""
        if not (offset >= 0 and nbytes >= 0 and offset + nbytes <= self.described.nbytes):
            raise BadTensor(
                f"{what} has {nbytes} bytes at {offset} of region {named(self.described.name)}, which has "
                f"{self.described.nbytes}"
            )
        return Place(self, offset, nbytes)

    def read(self, offset: int, out: memoryview) -> None:
        """Fills `out`. Raises BadTensor if the memory has become shorter."""
        at = self.described.offset + offset
        done = 0
        while done < len(out):
            count = self._attempt(os.preadv, [out[done:]], at + done)
            if not count:
                raise BadTensor(f"region {named(self.described.name)} has become shorter than it was registered")
            done += count

    def write(self, offset: int, data: memoryview) -> None:
        """Writes data. Raises BadTensor if the memory has become shorter, or the machine has none left for it."""
        at = self.described.offset + offset
        if os.fstat(self._descriptor).st_size < at + len(data):  # writing would make it longer again
            raise BadTensor(f"region {named(self.described.name)} has become shorter than it was registered")
        done = 0
        while done < len(data):
            done += self._attempt(os.pwritev, [data[done:]], at + done)

    def _attempt(self, act: Callable[[int, Sequence[memoryview], int], int], buffers: list[memoryview], at: int) -> int:
        try:
            return act(self._descriptor, buffers, at)
        except OSError as error:
            name = named(self.described.name)
            raise BadTensor(f"region {name} cannot be used: {error.strerror}") from None


class Place(NamedTuple):
    """A part of a region, for one tensor."""

    region: Region
    offset: int  # in the region
    nbytes: int

    def read(self, out: memoryview) -> None:
        """See Region.read."""
        self.region.read(self.offset, out)

    def write(self, values: NDArray[np.generic] | bytes) -> None:
        """See Region.write."""
        data = memoryview(values) if isinstance(values, bytes) else values.reshape(-1).view(np.uint8).data
        self.region.write(self.offset, data)


class Regions:
    """The regions by name. One writer: the front end's loop."""

    def __init__(self, described: Sequence[messages.Region] = (), descriptors: Sequence[int] = ()) -> None:
        pairs = zip(described, descriptors, strict=True)
        self._by_name = {each.name: Region(each, descriptor) for each, descriptor in pairs}

    def add(self, described: messages.Region, descriptor: int) -> None:
        """Adds a region, and owns its descriptor from now on."""
        self._by_name[described.name] = Region(described, descriptor)

    def remove(self, name: str) -> None:
        """Removes a region; "": all of them. Requests in flight still use it."""
        if name:
            self._by_name.pop(name, None)
        else:
            self._by_name.clear()

    def get(self, name: str) -> Region:
        """Returns a region. Raises UnknownRegion."""
        region = self._by_name.get(name)
        if region is None:
            raise UnknownRegion(f"region {named(name)} is not registered")
        return region

    def described(self) -> list[messages.Region]:
        """Returns what is known of all regions."""
        return [region.described for region in self._by_name.values()]


def open_region(name: str, key: str, offset: int, nbytes: int, folder: Path = _FOLDER) -> tuple[messages.Region, int]:
    """Opens the memory of a region, and returns its description and a descriptor.

    The key is one file name: it has no folder, is no link, and belongs to a file of this user, so that a caller reaches
    nothing through the server that this user's programs have not made. Raises BadRequest, with one text for every
    fault of the file, so that a caller does not learn which files exist.
    """
    if not (name.isprintable() and 1 <= len(name.encode()) <= _MOST_OF_A_NAME):
        raise BadRequest(f"name of the region is {named(name)}, want 1 to {_MOST_OF_A_NAME} bytes of printable text")
    matched = _KEY.fullmatch(key)
    if matched is None or matched[1].startswith(_RESERVED):
        raise BadRequest(
            f"key {named(key)} is not that of a client's memory: want one file name of A-Z, a-z, 0-9, -, _ and ."
        )
    descriptor = _opened(matched[1], folder)
    if descriptor is None:
        raise BadRequest(f"region {named(name)} cannot be opened: want the key of shared memory of the server's user")
    available = os.fstat(descriptor).st_size
    if nbytes < 1 or offset < 0 or offset + nbytes > available:
        os.close(descriptor)
        raise BadRequest(
            f"region {named(name)} has {nbytes} bytes at {offset}, want 1 or more within the {available} of its memory"
        )
    return messages.Region(name, key, offset, nbytes), descriptor


def _opened(file: str, folder: Path) -> int | None:
    """Returns a descriptor for reading and writing; None if this is no regular file of this user with one name."""
    try:
        # A path alone at first: opening a pipe or a device for use would already act on it.
        place = os.open(folder / file, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        status = os.fstat(place)
        if not (stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1):
            return None
        return os.open(f"/proc/self/fd/{place}", os.O_RDWR)  # that very file
    except OSError:
        return None
    finally:
        os.close(place)
