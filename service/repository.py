"""The model repository: what lies in its folders, and the table of versions that all processes share."""

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from convoy.service.buckets import NONE, Buckets
from convoy.service.config import ModelConfig, load_model_config
from convoy.service.errors import BadConfig, ModelUnavailable, UnknownModel, listed
from convoy.service.metadata import Document

MODEL_FILE = "model.onnx"
CONFIG_FILE = "model.toml"
TRITON_FILE = "config.pbtxt"  # beside a model that another server has served
PROFILE_FILE = "profile.json"  # which the server itself writes beside a model file

MAX_NAME = 64
_NAMED = 8  # models that a message names: it travels in a header
NAME = re.compile(rf"[a-z0-9_-]{{1,{MAX_NAME}}}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
_TRITON_BATCH = re.compile(r"^\s*max_batch_size\s*:\s*(\d{1,9})\b", re.MULTILINE)
_MOST_TRITON_BYTES = 1 << 20

State = Literal["LOADING", "READY", "UNAVAILABLE"]


# What exporters and people write for a free side that has no name: two of them are not the same side.
_PLACEHOLDERS = {"", "?", "*", "-1", "none", "null", "any", "dynamic", "unknown"}


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output of a network. A side is None where it is free; `names` tells which free sides are the same.

    A shape of no sides is a scalar's, or one of any rank: model files do not tell the two apart.
    """

    name: str
    dtype: str  # as numpy names it: uint8, float32, ...
    shape: tuple[int | None, ...]
    names: tuple[str, ...]  # the name of each free side, else ""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: a version of a model, and how it serves. The engine writes it, front ends read it."""

    model: str
    version: int
    state: State
    reason: str = ""  # why it is not READY; of one that is, why requests run one at a time
    provider: str = ""  # the onnxruntime execution provider
    document: Document | None = None  # None: an ONNX file that says nothing about itself
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    defaults: tuple[str, ...] = ()  # inputs that have a value in the file, with which they run
    batched: bool = False  # several requests may run side by side along the first dimension
    max_batch_size: int = 1
    batch_size: int = 1  # images of the most efficient batch, as far as that is known before it serves
    max_queue_delay_ms: float = 0.0
    buckets: Buckets = NONE


class Table(msgspec.Struct, frozen=True):
    """Every version there is, by model and then from the highest down, and whether the first look is complete."""

    versions: tuple[Version, ...] = ()
    complete: bool = False
    problem: str = ""  # why there has been no first look

    def serving(self, model: str, version: int = 0) -> Version:
        """The row that serves `model`; `version` 0 means whichever does.

        Raises UnknownModel where there is none, ModelUnavailable while it loads.
        """
        rows = [row for row in self.versions if row.model == model]
        model = model[:MAX_NAME]  # what a caller made up goes into messages, in part
        if not rows:
            if self.problem:
                raise ModelUnavailable(f"model {model!r} is not served: {self.problem}", retry_after=5.0)
            if not self.complete:
                raise ModelUnavailable(f"model {model!r} may still be loading", retry_after=1.0)
            raise UnknownModel(f"model {model!r} is unknown: {self._names()}")
        if version:
            rows = [row for row in rows if row.version == version]
            if not rows:
                raise UnknownModel(f"model {model!r} has no version {version}")
        for row in rows:
            if row.state == "READY":
                return row
        if any(row.state == "LOADING" for row in rows):
            raise ModelUnavailable(f"model {model!r} is loading", retry_after=1.0)
        if version:
            raise UnknownModel(f"version {version} of model {model!r} is not served: {rows[0].reason}")
        raise ModelUnavailable(f"model {model!r} is not served: {rows[0].reason}")

    def _names(self) -> str:
        names = sorted({row.model for row in self.versions})
        text = listed(names, _NAMED)
        return f"the server has {text or 'none'}" + ("; ListModels names them" if text.endswith(" more") else "")

    @property
    def ready(self) -> bool:
        """Whether this server can be sent requests: the first look is complete and something serves."""
        return self.complete and any(row.state == "READY" for row in self.versions)


def is_placeholder(name: str) -> bool:
    """Whether a free side's name is none: sides that bear it need not be equal."""
    return name.strip().lower() in _PLACEHOLDERS


def encode_table(table: Table) -> bytes:
    """The table as JSON."""
    return msgspec.json.encode(table)


def decode_table(data: bytes) -> Table:
    """The table in `encode_table`'s JSON."""
    return msgspec.json.decode(data, type=Table)


class Stamp(msgspec.Struct, frozen=True):
    """Tells one state of a version's files from another without reading them: of its model file, and of what lies
    beside it, which may hold its weights."""

    inode: int
    nbytes: int
    modified_ns: int
    beside: tuple[tuple[str, int, int, int], ...] = ()  # name, inode, bytes, time of each other file


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in one model's folder."""

    config: ModelConfig = field(default_factory=ModelConfig)
    problem: str = ""  # why nothing of this model can be served
    files: dict[int, Stamp] = field(default_factory=dict)  # by version, those with a model file
    missing: tuple[int, ...] = ()  # versions without one
    note: str = ""  # what else there is that bears on how the model serves
    unreadable: tuple[int, ...] = ()  # those of them whose folder cannot be read


def scan(root: Path) -> dict[str, Listing]:
    """What lies in the repository now, by model name. Folders whose names are no model's or version's are passed over.

    Raises OSError where `root` cannot be read.
    """
    found = {}
    for folder in sorted(root.iterdir()):
        try:
            if NAME.fullmatch(folder.name) and folder.is_dir():
                found[folder.name] = _scan_model(folder)
        except FileNotFoundError:
            continue  # taken away this moment
        except OSError as error:
            found[folder.name] = Listing(problem=f"its folder cannot be read: {error.strerror}")
    return found


def misnamed(root: Path) -> list[str]:
    """Folders that hold a version with a model file, but whose names are no model's. Raises OSError as `scan` does."""
    return sorted(file.parts[-3] for file in root.glob(f"*/*/{MODEL_FILE}") if not NAME.fullmatch(file.parts[-3]))


def model_file(root: Path, model: str, version: int) -> Path:
    """Where a version's file is. Only for names that `scan` found."""
    return root / model / str(version) / MODEL_FILE


def _scan_model(folder: Path) -> Listing:
    settings = ModelConfig()
    problem = ""
    files: dict[int, Stamp] = {}
    missing = []
    unreadable = []
    for entry in folder.iterdir():
        if VERSION.fullmatch(entry.name) and entry.is_dir():
            stamp = _stamp(entry / MODEL_FILE)
            if stamp:
                files[int(entry.name)] = stamp
            else:
                missing.append(int(entry.name))
                if not _is_readable(entry):
                    unreadable.append(int(entry.name))
    try:
        if (folder / CONFIG_FILE).exists():
            settings = load_model_config((folder / CONFIG_FILE).read_bytes())
    except BadConfig as error:
        problem = f"{CONFIG_FILE}: {error.message}"
    except OSError as error:
        problem = f"{CONFIG_FILE} cannot be read: {error.strerror}"
    settings, note = _with_triton(folder / TRITON_FILE, settings)
    return Listing(settings, problem, files, tuple(missing), note, tuple(unreadable))


def _with_triton(file: Path, settings: ModelConfig) -> tuple[ModelConfig, str]:
    """The settings, with what Triton's configuration says of batches where they say nothing, and what was read there.

    Of that file only `max_batch_size` counts, 0 meaning that the first side of the tensors is no batch: names and
    shapes are in the model file.
    """
    try:
        if not file.is_file():
            return settings, ""
        with file.open("rb") as opened:
            text = opened.read(_MOST_TRITON_BYTES).decode(errors="replace")
    except OSError as error:
        return settings, f"{TRITON_FILE} cannot be read: {error.strerror}"
    found = _TRITON_BATCH.search(text)
    if found is None:
        return settings, f"{TRITON_FILE} says nothing of max_batch_size, and nothing else of it is read"
    most = int(found[1])
    if settings.batched is None and most == 0:
        settings = msgspec.structs.replace(settings, batched=False)
    if settings.max_batch_size is None and 1 <= most <= 1024:
        settings = msgspec.structs.replace(settings, max_batch_size=most)
    return settings, f"max_batch_size = {most} is read from {TRITON_FILE}, and nothing else of it"


def _is_readable(folder: Path) -> bool:
    try:
        (folder / MODEL_FILE).stat()
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _stamp(file: Path) -> Stamp | None:
    own = _state(file)
    if own is None:
        return None
    beside = []
    try:
        names = sorted(entry.name for entry in file.parent.iterdir())
    except OSError:
        names = []
    for name in names:
        if name not in (MODEL_FILE, PROFILE_FILE) and not name.startswith("."):
            state = _state(file.parent / name)
            if state is not None:
                beside.append((name, *state))
    return Stamp(*own, tuple(beside))


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def choose(listing: Listing, failed: Iterable[tuple[int, Stamp]]) -> int | None:
    """The version that should serve: the highest that has a file and has not failed as it is now."""
    if listing.problem:
        return None
    broken = set(failed)
    sound = [version for version, stamp in listing.files.items() if (version, stamp) not in broken]
    return max(sound, default=None)
