"""Folders of a server that end with it, also if it is killed: the next one removes them.

A running server holds a lock on each of its folders. The lock ends with the process, however that ends; a process id
would not do, since another process may have it by then: in a container it is always 1.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def made(prefix: str, parent: Path) -> tuple[Path, int]:
    """Makes a folder and locks it. The descriptor has the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # another server may have removed it before it was locked
            return folder, lock
        os.close(lock)


def remove_left(prefix: str, parent: Path) -> None:
    """Removes the folders of this user's servers that were killed."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # another server's, or already removed
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
