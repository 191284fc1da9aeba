"""Atomic publication of a model file in a model repository, under the next version number."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from convoy.models.errors import BadModelName
from convoy.service.repository import MODEL_FILE, NAME, VERSION

_NONE: Mapping[str, bytes] = MappingProxyType({})


def publish(content: bytes, repository: Path, name: str, beside: Mapping[str, bytes] = _NONE) -> Path:
    """Writes `<repository>/<name>/<version>/model.onnx`, one version above the highest. Returns its path.

    `beside` are further files, by their paths in the version's folder.

    The file is written and synced in a temporary folder beside the versions, which is then renamed, so that readers
    never find an incomplete version, even after a crash. Concurrent calls get different versions. Raises BadModelName.
    """
    check_name(name)
    model = repository / name
    model.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=model))
    try:
        _write(incoming / MODEL_FILE, content)
        for path, data in beside.items():
            _write_beside(incoming / path, data)
        incoming.chmod(0o755)  # mkdtemp's folders are private, and the server may run as another user
        _sync(incoming)
        version = _rename(incoming, model)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    _sync(model)
    return version / MODEL_FILE


def check_name(name: str) -> None:
    """Raises BadModelName if a repository does not accept the name."""
    if not NAME.fullmatch(name):
        raise BadModelName(f"model name {name!r}, want 1 to 64 of a-z, 0-9, - and _")


def versions(repository: Path, name: str) -> list[int]:
    """Returns the versions of a model, ascending; empty if there is no such model."""
    folder = repository / name
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if VERSION.fullmatch(name))


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_beside(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    _write(path, content)
    _sync(path.parent)


def _rename(incoming: Path, model: Path) -> Path:
    while True:
        version = model / str(max(versions(model.parent, model.name), default=0) + 1)
        try:
            # Fails if another process has just taken the number: its folder is not empty.
            return incoming.rename(version)
        except OSError:
            if not version.exists():
                raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
