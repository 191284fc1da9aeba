"""The folder of one training run: where its files lie, and the note that tells what ran and whether it ended."""

import hashlib
import inspect
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from convoy.models import registry, whole_file
from convoy.models.errors import BadRun, BadTraining
from convoy.models.recipe import Recipe
from convoy.models.registry import Argument

PACKAGE = Path(__file__).parents[1]
DEFAULT_SEED = 0
HIGHEST_SEED = 2**32 - 1  # NumPy's
# Besides the architecture's own file: the source that decides what comes out of a training run.
SOURCES = ("training/*.py", "graph.py", "blocks.py", "data/*.py")

Freeze = Literal["none", "body"]


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run starts from the weights of another network; the body is all but the head, which depends on the classes.

    checkpoint     where the weights are
    freeze         what is left as it was taken over, with its batch normalisation
    freeze_epochs  for how many epochs; None: to the end
    body_rate      learning rate of the body, as a multiple of the head's
    """

    checkpoint: str
    freeze: Freeze = "none"
    freeze_epochs: Annotated[int, Meta(ge=1)] | None = None
    body_rate: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a training run is told; the same settings and source give the same network on the same machine."""

    architecture: str
    arguments: dict[str, Argument]
    data: str
    recipe: Recipe
    seed: Annotated[int, Meta(ge=0, le=HIGHEST_SEED)]
    size: tuple[int, int] | None = None  # height and width of the input, where not the architecture's own
    transfer: Transfer | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is given here, which changes nothing in what comes out of it.

    devices        processes that train together on this host, each with a device of its own; with torchrun as many as
                   that started
    workers        threads of each that make batches ahead; None: none for data that is kept in memory, else one a core
    save_seconds   between checkpoints within an epoch; 0 writes one after every step
    strict         a picture that cannot be read ends the run before it begins, instead of being left out
    """

    devices: int = 1
    workers: int | None = None
    save_seconds: float = 60.0
    strict: bool = False


ONE = Machine()


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`. `seconds` of wall time count every session of a run that was resumed.

    `checkpoint` is the file to go on with: the last epoch's where the run went to its end, for there the learning rate
    has come down to nothing, and the choice among epochs by a small validation split is mostly noise; the best one
    where it stopped early. `validation` holds its scores.
    """

    settings: Settings
    source: str
    complete: bool
    epochs: int
    seconds: float
    checkpoint: str
    validation: dict[str, float]


class RunFolder:
    """Paths below one folder. `best` is the checkpoint of the lowest validation loss, `last` that of the last epoch, or
    of a step within it while the run goes; `kept` has the best few, where that was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.best = root / "best.ckpt"
        self.last = root / "last.ckpt"
        self.kept = root / "best"
        self.note = root / "run.json"
        self.config = root / "config.toml"

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """The folder of the run that wrote a checkpoint."""
        folder = cls(checkpoint.parent.parent)
        return folder if checkpoint.parent == folder.kept and folder.note.is_file() else cls(checkpoint.parent)

    def chosen(self) -> Path:
        """The checkpoint to go on with; without a note the last one. Raises BadRun where there is neither."""
        note = self.read()
        if note is None and not self.last.is_file():
            raise BadRun(f"{self.root} is not the folder of a run, want one that `convoy train` wrote")
        return self.root / note.checkpoint if note is not None else self.last

    def read(self) -> Note | None:
        """The note, or None where there is none that this version wrote."""
        try:
            return msgspec.json.decode(self.note.read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, note: Note) -> None:
        whole_file.write(self.note, msgspec.json.format(msgspec.json.encode(note)))

    def clear(self) -> None:
        """Remove the checkpoints of an earlier run, from which nobody should go on by mistake."""
        for path in (self.best, self.last, *self.kept.glob("epoch-*.ckpt")):
            path.unlink(missing_ok=True)

    def finished(self, settings: Settings) -> bool:
        """Whether a run of these settings, with the source as it is now, has come to its end here."""
        note = self.read()
        return (
            note is not None
            and note.complete
            and note.settings == settings
            and note.source == source_digest(settings.architecture)
            and (self.root / note.checkpoint).is_file()
        )


def default_settings(architecture: str, data: str) -> Settings:
    """What `convoy train ARCHITECTURE --data DATA` runs. Raises BadTraining."""
    row = registry.architecture(architecture)
    return Settings(
        architecture=architecture, arguments=dict(row.arguments), data=data, recipe=row.recipe, seed=DEFAULT_SEED
    )


def check_crop(settings: Settings) -> None:
    """Raises BadTraining where squares cannot be cut out of what the architecture takes."""
    row = registry.architecture(settings.architecture)
    if settings.recipe.crop is not None and (row.task != "segmentation" or registry.sides(row.input)):
        raise BadTraining(f"crop {settings.recipe.crop}: {settings.architecture} takes whole images")


def source_digest(architecture: str) -> str:
    """SHA-256 of the source that decides what a run of this architecture gives."""
    own = Path(inspect.getfile(registry.architecture(architecture).network_class()))
    files = [own, *sorted(path for pattern in SOURCES for path in PACKAGE.glob(pattern))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def commit() -> str:
    """The commit of the source tree, `-dirty` where it was changed since; empty where there is none."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        # An installed package may lie inside some other project's tree.
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "registry.py"], capture_output=True, check=False)
        if tracked.returncode:
            return ""
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
