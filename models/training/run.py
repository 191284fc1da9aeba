"""The folder of a training run: paths of its files, its settings in `config.toml`, the note with its outcome, and the
table of its epochs."""

import csv
import hashlib
import inspect
import io
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomli_w
from msgspec import Meta

from convoy.models import paths, registry
from convoy.models.errors import BadRun, BadTraining
from convoy.models.registry import Argument
from convoy.models.settings import Recipe
from convoy.service.text import decoded

PACKAGE = Path(__file__).parents[1]
DEFAULT_SEED = 0
HIGHEST_SEED = 2**32 - 1  # NumPy's
# Source files, besides the architecture's own, that determine the result of a training run.
SOURCES = ("training/*.py", "graph.py", "blocks.py", "data/*.py")

Freeze = Literal["none", "body"]

CONFIG_HEADER = """\
# All settings of this run. The same source on the same machine produces the same network with
#   convoy train --config FILE
"""

METRICS = "metrics.csv"
IMAGES_PER_SECOND, WAITING = "images_per_second", "waiting_for_data"  # columns

Row = dict[str, float]


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Transfer from another network's weights; the body is everything but the head, which depends on the classes.

    checkpoint     file with the weights
    freeze         the part that is not trained, including its batch normalisation
    freeze_epochs  number of epochs for which it is frozen; None: all
    body_rate      learning rate of the body, as a multiple of the head's
    """

    checkpoint: str
    freeze: Freeze = "none"
    freeze_epochs: Annotated[int, Meta(ge=1)] | None = None
    body_rate: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training run; the same settings and source produce the same network on the same machine."""

    architecture: str
    arguments: dict[str, Argument]
    data: str
    recipe: Recipe
    seed: Annotated[int, Meta(ge=0, le=HIGHEST_SEED)]
    size: tuple[int, int] | None = None  # height and width of the input, if not the architecture's own
    transfer: Transfer | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Resources of a run, which do not affect its result.

    devices        processes that train together on this host, each on its own device; torchrun overrides this
    workers        threads per process that prepare batches; None: none for data in memory, else one per core
    save_seconds   interval of checkpoints within an epoch; 0 writes one after every step
    strict         an unreadable image ends the run before it starts, instead of being skipped
    """

    devices: int = 1
    workers: int | None = None
    save_seconds: float = 60.0
    strict: bool = False


ONE = Machine()


MOST_NAMED = 1000  # images, in a note


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`. `seconds` is wall time over all sessions of a resumed run.

    `checkpoint` is the file to use, of the epoch with the lowest validation loss. `validation` contains its scores.
    `left_out` names the images that the run could not use, at most MOST_NAMED of the `left_out_total`.
    """

    settings: Settings
    source: str
    complete: bool
    epochs: int
    seconds: float
    checkpoint: str
    validation: dict[str, float]
    left_out: tuple[str, ...] = ()
    left_out_total: int = 0


class RunFolder:
    """Paths below one folder. `best` is the checkpoint with the lowest validation loss, `last` the last epoch's, or
    during the run that of a step; `kept` contains the best few, if requested."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.best = root / "best.ckpt"
        self.last = root / "last.ckpt"
        self.kept = root / "best"
        self.note = root / "run.json"
        self.config = root / "config.toml"

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """Returns the folder of the run that wrote a checkpoint."""
        folder = cls(checkpoint.parent.parent)
        return folder if checkpoint.parent == folder.kept and folder.note.is_file() else cls(checkpoint.parent)

    def chosen(self) -> Path:
        """Returns the checkpoint to use: the best one, or before the end of the first epoch the last one. Raises BadRun
        if this is not the folder of a run."""
        note = self.read()
        if note is None and not self.last.is_file():
            raise BadRun(f"{self.root} is not the folder of a run, want one that `convoy train` wrote")
        best = self.best if note is None else self.root / note.checkpoint
        return self.last if self.last.is_file() and not best.is_file() else best

    def occupied(self) -> bool:
        """Returns whether the folder contains a run, which a new one would replace."""
        return any(path.exists() for path in (self.note, self.best, self.last))

    def unoccupied(self) -> "RunFolder":
        """Returns this folder, or the first without a run of those with a number: `NAME-2`, `NAME-3` and so on."""
        folder, number = self, 1
        while folder.occupied():
            number += 1
            folder = RunFolder(self.root.with_name(f"{self.root.name}-{number}"))
        return folder

    def read(self) -> Note | None:
        """Returns the note, or None if this version did not write one."""
        try:
            return msgspec.json.decode(self.note.read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, note: Note) -> None:
        paths.write_atomically(self.note, msgspec.json.format(msgspec.json.encode(note)))

    def clear(self) -> None:
        """Removes the checkpoints of an earlier run, so that they are not used by mistake."""
        for path in (self.best, self.last, *self.kept.glob("epoch-*.ckpt")):
            path.unlink(missing_ok=True)

    def finished(self, settings: Settings) -> bool:
        """Returns whether a run with these settings and the current source has completed here."""
        note = self.read()
        return (
            note is not None
            and note.complete
            and note.settings == settings
            and note.source == source_digest(settings.architecture)
            and (self.root / note.checkpoint).is_file()
        )


def default_settings(architecture: str, data: str) -> Settings:
    """Returns the settings of `convoy train ARCHITECTURE --data DATA`. Raises BadTraining."""
    row = registry.architecture(architecture)
    return Settings(
        architecture=architecture, arguments=dict(row.arguments), data=data, recipe=row.recipe, seed=DEFAULT_SEED
    )


def check_crop(settings: Settings) -> None:
    """Raises BadTraining if the recipe crops images but the architecture does not support cropping."""
    row = registry.architecture(settings.architecture)
    if settings.recipe.crop is not None and (row.task != "segmentation" or registry.sides(row.input)):
        raise BadTraining(f"crop {settings.recipe.crop}: {settings.architecture} accepts whole images only")


def source_digest(architecture: str) -> str:
    """Returns the SHA-256 of the source code that determines the results of a run of this architecture."""
    own = Path(inspect.getfile(registry.architecture(architecture).network_class()))
    files = [own, *sorted(path for pattern in SOURCES for path in PACKAGE.glob(pattern))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def commit() -> str:
    """Returns the commit of the source tree, with `-dirty` if it has changes; empty without a repository."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        # An installed package may be inside another project's tree.
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "registry.py"], capture_output=True, check=False)
        if tracked.returncode:
            return ""
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_settings(path: Path, settings: Settings) -> None:
    """Writes the settings, without those that are None."""
    paths.write_atomically(path, (CONFIG_HEADER + tomli_w.dumps(_without_none(msgspec.to_builtins(settings)))).encode())


def read_settings(path: Path) -> Settings:
    """Reads settings. Raises BadTraining, naming the key and the expected value."""
    try:
        return msgspec.toml.decode(decoded(path.read_bytes()), type=Settings)
    except FileNotFoundError:
        raise BadTraining(f"there is no file {path}, want the config.toml of a run") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadTraining(f"{path}: {' '.join(str(error).split())}") from None


def read_metrics(path: Path) -> list[Row]:
    """Returns the rows of a run, by epoch; empty if the file does not exist. Raises BadRun if it is damaged."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise BadRun(f"{path} is damaged, want numbers by epoch, or no such file: {error}") from None


def write_metrics(path: Path, rows: list[Row]) -> None:
    columns: dict[str, Any] = {name: None for row in rows for name in row}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
    paths.write_atomically(path, text.getvalue().encode())


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _without_none(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in nested.items() if value is not None}
