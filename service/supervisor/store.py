"""The folders in which a server keeps copies of the files that it serves, and results that outlast it."""

import logging
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from convoy.service.errors import BadConfig
from convoy.service.supervisor import folders

log = logging.getLogger(__name__)

_PREFIX = "server-"


class Store:
    """A folder that ends with the server, in one that stays. Use it as a context manager. One owner: the supervisor.

    Disk rather than memory: a copy is read when an engine starts, and never again. So it needs no place in memory.
    """

    def __init__(self, cache: str, temporary: Path) -> None:
        """`cache` is the configured folder; "" stands for one in the user's cache folder, or in `temporary`, which ends
        with the server, if that cannot be used. Raises BadConfig if the configured one cannot be used."""
        self.cache = _configured(cache) if cache else _usual(temporary)
        folders.remove_left(_PREFIX, self.cache)
        self.folder, self._lock = folders.made(_PREFIX, self.cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _configured(cache: str) -> Path:
    folder = Path(cache).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfig(f"repository.cache is {cache!r}, which cannot be used ({error.strerror})") from None
    if not _is_private(folder):
        raise BadConfig(f"repository.cache is {cache!r}, want a folder that only its owner, this user, may write")
    return folder


def _usual(temporary: Path) -> Path:
    folder = usual_folder()
    with suppress(OSError):  # a read-only file system
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(folder):
                return folder
    log.info("there is no cache folder: results of trials end with this server; see repository.cache")
    return temporary


def usual_folder() -> Path | None:
    """The folder in the user's cache folder, whether it is there or not; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "convoy"
    except RuntimeError:
        return None


def _is_private(folder: Path) -> bool:
    """Returns whether this user alone may write: whoever else could would decide which files are loaded."""
    status = folder.stat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.geteuid() and not others and os.access(folder, os.W_OK | os.X_OK)
