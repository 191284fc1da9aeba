"""Looks at other processes in /proc. Any may end between two looks: one that is gone has no words, children or time."""

from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError)  # at opening a file of /proc; at reading one that is open


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet waited for."""
    return [int(child) for thread in _threads(pid) for child in _read(thread / "children").split()]


def below(pid: int) -> list[int]:
    """The children of a process, their children and so on."""
    return [each for child in children(pid) for each in (child, *below(child))]


def words(pid: int) -> list[str]:
    """The command line of a process."""
    return _read(Path(f"/proc/{pid}/cmdline")).decode(errors="replace").split("\0")


def alive(pid: int) -> bool:
    """Whether a process runs, or could: one that only waits to be waited for does not."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return bool(fields) and fields[0] != b"Z"


def ran_seconds(pid: int) -> float:
    """The CPU seconds of a process's threads that live."""
    fields = [_read(thread / "schedstat").split() for thread in _threads(pid)]
    return sum(int(each[0]) for each in fields if each) / 1e9


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except _GONE:
        return []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except _GONE:
        return b""
