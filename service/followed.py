"""Files that are read again when they change, such as certificates that something else renews."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from convoy.service.errors import BadConfig

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between two looks: notifications miss files that a mount replaces, as it does in Kubernetes
T = TypeVar("T")
_State = tuple[tuple[int, int, int, int] | None, ...]


class Followed(Generic[T]):
    """What `read` makes of some files, in `value`. One writer: the loop that polls.

    Changed files are read once they have stayed as they are from one look to the next: not while they are written.
    If changed files cannot be used, the previous value stays, one line of the log says so, and `failed` is true.
    """

    def __init__(self, what: str, files: Sequence[str], read: Callable[[], T]) -> None:
        """`what` names the files in the log. Raises BadConfig, as `read` does."""
        self.failed = False
        self._what = what
        self._files = [Path(file) for file in files]
        self._read = read
        # Before the files are read: a change in between is found by the next poll.
        self._state = self._seen = self._look()
        self.value = read()

    def poll(self, *, now: bool = False) -> bool:
        """Reads the files again if they have changed, or in any case `now`. Returns whether there is a new value."""
        before, state = self._seen, self._look()
        self._seen = state
        if not now and (state == self._state or state != before):
            return False
        self._state = state
        try:
            self.value = self._read()
        except BadConfig as error:
            log.error("%s %s, but the previous ones stay in use: %s", self._what, _why(now), error.message)
            self.failed = True
            return False
        log.info("%s %s and are in use", self._what, _why(now))
        self.failed = False
        return True

    def _look(self) -> _State:
        return tuple(_state(file) for file in self._files)


async def wait(reload: asyncio.Event, seconds: float) -> None:
    """Waits for the next poll, or until it is wanted at once."""
    with suppress(TimeoutError):
        await asyncio.wait_for(reload.wait(), seconds)


def _why(now: bool) -> str:
    return "were read again" if now else "changed"


def _state(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def read_file(key: str, name: str) -> bytes:
    """The bytes of the file that a setting names. Raises BadConfig."""
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise BadConfig(f"{key} {name!r}: {error.strerror}") from None
