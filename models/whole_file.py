"""Atomic file writes: a process killed while writing leaves the previous file intact."""

import os
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes a temporary file in the same folder and renames it. Raises OSError, which names the file."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # concurrent writers each have their own
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else, after a power loss, the new name could exist without its content
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
