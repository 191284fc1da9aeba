"""Files that are there whole or not at all: whoever is killed while writing one leaves what was there before."""

import os
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside its place and move it there. Raises OSError, which names the file."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # of two that write at once each has its own
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else the new name could outlive a loss of power, and what it stands for not
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
