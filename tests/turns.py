"""`make test` runs tests in two processes at once. A test that is marked `alone` runs while the other process waits."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """Whose turn it is, as locks on two files in `folder`. The system frees the locks of a process that dies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._entrance = (folder / "entrance").open("w")
        self._floor = (folder / "floor").open("w")

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        # Whoever waits for the others to leave keeps the entrance meanwhile: nobody overtakes it.
        with _locked(self._entrance.fileno(), fcntl.LOCK_EX):
            fcntl.flock(self._floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._floor, fcntl.LOCK_UN)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes that want the same lock waiting. The file is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file, _locked(file.fileno(), fcntl.LOCK_EX):
        yield


def encodable(value: object) -> object:
    """Replaces lone surrogates in all text of a report, made of dictionaries and lists, by their codes."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {encodable(key): encodable(entry) for key, entry in value.items()}
        case list() | tuple():
            return type(value)(map(encodable, value))
    return value


@contextmanager
def _locked(descriptor: int, operation: int) -> Iterator[None]:
    fcntl.flock(descriptor, operation)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
