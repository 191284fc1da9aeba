"""Put a model file into a model repository: as a whole or not at all, under the next version number."""

import os
import shutil
import tempfile
from pathlib import Path

from convoy.models.errors import BadModelName
from convoy.service.repository import MODEL_FILE, NAME, VERSION


def publish(content: bytes, repository: Path, name: str) -> Path:
    """Write `<repository>/<name>/<version>/model.onnx`, one version above the highest; returns its path.

    The file is written and synced in a folder beside the versions whose name is no version, then renamed: whoever reads
    the repository, and whatever happens halfway, a version is there complete or not there. Of two that publish at once
    each gets its own version. Raises BadModelName.
    """
    check_name(name)
    model = repository / name
    model.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=model))
    try:
        _write(incoming / MODEL_FILE, content)
        incoming.chmod(0o755)  # mkdtemp's folders are for their owner only, and the server may be someone else
        _sync(incoming)
        version = _rename(incoming, model)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    _sync(model)
    return version / MODEL_FILE


def check_name(name: str) -> None:
    """Raises BadModelName where a repository takes no such model."""
    if not NAME.fullmatch(name):
        raise BadModelName(f"model name {name!r}, want 1 to 64 of a-z, 0-9, - and _")


def versions(repository: Path, name: str) -> list[int]:
    """The versions of a model, ascending; empty where there is no such model."""
    folder = repository / name
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if VERSION.fullmatch(name))


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename(incoming: Path, model: Path) -> Path:
    while True:
        version = model / str(max(versions(model.parent, model.name), default=0) + 1)
        try:
            # Fails where someone else took the number just now: their folder is not empty.
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
