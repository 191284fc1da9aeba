"""Paths: checks of those from the user, and atomic writes.

The checks report a missing file before the libraries that read it are imported, which takes seconds.
"""

import os
from pathlib import Path

from convoy.models.errors import BadCheckpoint, BadNetworkFile, BadView, BadWeights

NETWORKS = (".ckpt", ".onnx")


def check_checkpoint(path: Path) -> None:
    """Raises BadCheckpoint if the file does not exist."""
    if not path.is_file():
        raise BadCheckpoint(f"there is no checkpoint {path}, want a .ckpt file that `convoy train` wrote")


def check_exported(path: Path) -> None:
    """Raises BadNetworkFile if the file does not exist."""
    if not path.is_file():
        raise BadNetworkFile(f"there is no file {path}, want one that `convoy export` wrote")


def check_trained(path: Path) -> None:
    """Checks an exported file or a checkpoint, by the suffix. Raises BadNetworkFile, BadCheckpoint."""
    (check_exported if path.suffix == ".onnx" else check_checkpoint)(path)


def check_network(path: Path) -> None:
    """Checks a checkpoint or any ONNX file, by the suffix. Raises BadNetworkFile, BadCheckpoint, OSError."""
    if path.suffix not in NETWORKS:
        raise BadNetworkFile(f"{path} is neither a checkpoint (.ckpt) nor an ONNX file (.onnx)")
    if path.suffix == ".ckpt":
        check_checkpoint(path)
    path.stat()


def check_onnx(path: Path) -> None:
    """Checks an ONNX file made elsewhere. Raises BadNetworkFile if it does not exist or is empty."""
    if not path.is_file():
        raise BadNetworkFile(f"{path} is a folder, want an ONNX file" if path.is_dir() else f"there is no file {path}")
    if not path.stat().st_size:
        raise BadNetworkFile(f"{path} is empty, want an ONNX file")


def check_weights(path: Path) -> None:
    """Raises BadWeights if the file does not exist."""
    if not path.is_file():
        raise BadWeights(f"there is no file {path}, want weights that Keras or torchvision saved")


def check_image(path: Path) -> None:
    """Raises BadView if the file does not exist."""
    if not path.is_file():
        raise BadView(f"there is no image {str(path)!r}")


def write_atomically(path: Path, content: bytes | memoryview) -> None:
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
