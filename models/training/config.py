"""`config.toml` of a run: all its settings, with which `convoy train --config` trains the same network again."""

from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from convoy.models import paths
from convoy.models.errors import BadTraining
from convoy.models.training.run import Settings
from convoy.service.text import decoded

HEADER = """\
# All that this run was told. The same source and the same machine give the same network again with
#   convoy train --config FILE
"""


def write(path: Path, settings: Settings) -> None:
    """Writes the settings, without those that are None."""
    paths.write_atomically(path, (HEADER + tomli_w.dumps(_given(msgspec.to_builtins(settings)))).encode())


def read(path: Path) -> Settings:
    """Reads settings. Raises BadTraining, naming the key and the expected value."""
    try:
        return msgspec.toml.decode(decoded(path.read_bytes()), type=Settings)
    except FileNotFoundError:
        raise BadTraining(f"there is no file {path}, want the config.toml of a run") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadTraining(f"{path}: {' '.join(str(error).split())}") from None


def _given(values: dict[str, Any]) -> dict[str, Any]:
    given = {name: _given(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in given.items() if value is not None}
