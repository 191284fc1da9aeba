"""What the processes of a server hold: memory, descriptors, threads, mappings."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
# What the allocator has mapped, and a session's buffers: it gets them when it first runs requests together, which for
# some networks is seldom.
_OWN = ("[", "/dev/zero")


class Held(NamedTuple):
    """Of one process."""

    rss_bytes: int
    descriptors: int  # without those of /dev/null: libuv keeps one in reserve, from the first stream of a loop on
    threads: int
    children: int
    mappings: int  # of files and of memory shared by descriptors; others come and go


def held(pid: int) -> Held:
    """What a process holds now."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    maps = [line.split(maxsplit=5) for line in (process / "maps").read_text().splitlines()]
    return Held(
        rss_bytes=1024 * int(status["VmRSS"].split()[0]),
        descriptors=_descriptors(process / "fd"),
        threads=int(status["Threads"]),
        children=len((process / "task" / str(pid) / "children").read_text().split()),
        mappings=sum(len(parts) > 5 and not parts[5].startswith(_OWN) for parts in maps),
    )


def _descriptors(folder: Path) -> int:
    found = 0
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # it has just been closed
            found += entry.readlink() != Path(os.devnull)
    return found


def highest_rss(pid: int) -> int:
    """The most memory that a process has had since `reset_highest`, in bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def reset_highest(pid: int) -> None:
    """Begins to look for the most memory again."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
