"""The model repository: the scan of its folders, and the table of versions that all processes share.

Models may also lie outside it: see sources.py.
"""

import re
import stat
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from convoy.service import files
from convoy.service.buckets import NONE, Buckets
from convoy.service.config import ModelConfig, VersionsSetting, load_model_config
from convoy.service.errors import BadConfig, BadModelFile, ModelUnavailable, UnknownModel, listed, named
from convoy.service.metadata import Document

MODEL_FILE = "model.onnx"
CONFIG_FILE = "model.toml"
TRITON_FILE = "config.pbtxt"  # next to a model that Triton has served
PROFILE_FILE = "profile.json"  # which the server writes next to a model file
_NO_DATA = (MODEL_FILE, CONFIG_FILE, PROFILE_FILE)

MAX_NAME = 64
_NAMED = 8  # models named in a message, which travels in a header
NAME = re.compile(rf"[a-z0-9_-]{{1,{MAX_NAME}}}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
_TRITON_BATCH = re.compile(r"^\s*max_batch_size\s*:\s*(\d{1,9})\b", re.MULTILINE)
_MOST_SETTINGS = 1 << 20  # bytes

ReadSettings = Callable[[bytes], ModelConfig]  # the content of a model.toml; raises BadConfig

State = Literal["LOADING", "READY", "UNAVAILABLE"]


# What exporters and people write for an unnamed dynamic dimension: two of them need not be equal.
_PLACEHOLDERS = {"", "?", "*", "-1", "none", "null", "any", "dynamic", "unknown"}


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output of a network. A dynamic dimension is None in `shape`; equal `names` mean equal dimensions.

    An empty shape is a scalar's, or that of a tensor of any rank: model files do not distinguish the two.
    """

    name: str
    dtype: str  # numpy's name: uint8, float32, ...
    shape: tuple[int | None, ...]
    names: tuple[str, ...]  # the name of each dynamic dimension, else ""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: a version of a model, and how it is served. The engine writes it, front ends read it."""

    model: str
    version: int
    state: State
    reason: str = ""  # why it is not READY; if READY, why requests run one at a time
    provider: str = ""  # the onnxruntime execution provider
    document: Document | None = None  # None: an ONNX file without metadata
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    defaults: tuple[str, ...] = ()  # inputs with a default value in the file; a request may omit them
    batched: bool = False  # several requests may share a run along the first dimension
    max_batch_size: int = 1
    batch_size: int = 1  # images in the most efficient batch, as far as known before it serves
    row_seconds: float | None = None  # of an image or tensor in a batch of that size; None: not measured
    max_queue_delay_ms: float = 0.0
    latency_objective: float = 0.0  # seconds; of a version that serves
    buckets: Buckets = NONE


class Table(msgspec.Struct, frozen=True):
    """All versions, by model and then from the highest down, and whether the first scan is complete."""

    versions: tuple[Version, ...] = ()
    complete: bool = False
    problem: str = ""  # why the first scan has failed

    def serving(self, model: str, version: int = 0, sees: Callable[[str], bool] = lambda _: True) -> Version:
        """The row that serves `model`; `version` 0 selects whichever version is serving. `sees`: whether the caller may
        know that a model exists.

        Raises UnknownModel if there is none, ModelUnavailable while it is loading.
        """
        rows = [row for row in self.versions if row.model == model]
        model = model[:MAX_NAME]  # a caller's name appears in messages only in part
        if not rows:
            if self.problem:
                raise ModelUnavailable(f"model {model!r} is not served: {self.problem}", retry_after=5.0)
            if not self.complete:
                raise ModelUnavailable(f"model {model!r} may still be loading", retry_after=1.0)
            raise UnknownModel(f"model {model!r} is unknown: {self._names(sees)}")
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

    def _names(self, sees: Callable[[str], bool]) -> str:
        names = sorted(filter(sees, {row.model for row in self.versions}))
        text = listed(names, _NAMED)
        return f"the server has {text or 'none'}" + ("; ListModels names them" if text.endswith(" more") else "")

    @property
    def ready(self) -> bool:
        """Whether this server accepts requests: the first scan is complete and a model is ready."""
        return self.complete and any(row.state == "READY" for row in self.versions)


def is_placeholder(name: str) -> bool:
    """Whether the name of a dynamic dimension is a placeholder: dimensions with such a name need not be equal."""
    return name.strip().lower() in _PLACEHOLDERS


def encode_table(table: Table) -> bytes:
    return msgspec.json.encode(table)


def decode_table(data: bytes) -> Table:
    return msgspec.json.decode(data, type=Table)


class Stamp(msgspec.Struct, frozen=True):
    """Identifies a state of a version's files without reading them: the model file and those next to it (weights)."""

    inode: int
    nbytes: int
    modified_ns: int
    beside: tuple[tuple[str, int, int, int], ...] = ()  # (name, inode, bytes, time) of each other file


@dataclass(frozen=True, slots=True)
class Listing:
    """The contents of one model's folder."""

    config: ModelConfig = field(default_factory=ModelConfig)
    problem: str = ""  # why no version of this model can be served
    files: dict[int, Stamp] = field(default_factory=dict)  # by version, those with a model file
    missing: tuple[int, ...] = ()  # versions without a model file
    note: str = ""  # other findings that affect how the model is served
    unreadable: tuple[int, ...] = ()  # versions in `missing` whose folder cannot be read
    empty: str = ""  # why there is no version at all


def scan(root: Path, read_settings: ReadSettings = load_model_config) -> dict[str, Listing]:
    """The contents of the repository, by model name. Folders without a valid model name or version are skipped.

    Raises OSError if `root` cannot be read.
    """
    listings = {}
    for folder in sorted(root.iterdir()):
        try:
            if NAME.fullmatch(folder.name) and folder.is_dir():
                listings[folder.name] = scan_model(folder, root, read_settings)
        except FileNotFoundError:
            continue  # deleted during the scan
        except OSError as error:
            listings[folder.name] = Listing(problem=f"its folder cannot be read: {error.strerror}")
    return listings


def misnamed(root: Path) -> list[str]:
    """Folders that contain a version with a model file but have no valid model name. Raises OSError as `scan` does."""
    return sorted(file.parts[-3] for file in root.glob(f"*/*/{MODEL_FILE}") if not NAME.fullmatch(file.parts[-3]))


def model_file(root: Path, model: str, version: int) -> Path:
    """The path of a version's model file. Only for names that `scan` returned."""
    return root / model / str(version) / MODEL_FILE


def scan_model(folder: Path, root: Path, read_settings: ReadSettings = load_model_config) -> Listing:
    """The contents of one model's folder. No link in it may lead out of `root`. Raises OSError if it cannot be read."""
    stamps: dict[int, Stamp] = {}
    missing = []
    unreadable = []
    for entry in folder.iterdir():
        if VERSION.fullmatch(entry.name) and entry.is_dir():
            found = stamp(entry / MODEL_FILE)
            if found:
                stamps[int(entry.name)] = found
            else:
                missing.append(int(entry.name))
                if not _is_readable(entry):
                    unreadable.append(int(entry.name))
    settings, problem = settings_in(folder, root, read_settings)
    settings, note = _with_triton(folder / TRITON_FILE, root, settings)
    empty = "" if stamps or missing else _without_versions(folder)
    return Listing(settings, problem, stamps, tuple(missing), note, tuple(unreadable), empty)


def settings_in(folder: Path, root: Path, read_settings: ReadSettings) -> tuple[ModelConfig, str]:
    """The settings in a folder's model.toml, and what is wrong with them."""
    try:
        if (folder / CONFIG_FILE).exists():
            return read_settings(files.read(folder / CONFIG_FILE, root, _MOST_SETTINGS)), ""
    except BadConfig as error:
        return ModelConfig(), f"{CONFIG_FILE}: {error.message}"
    except BadModelFile as error:
        return ModelConfig(), error.message
    except OSError as error:
        return ModelConfig(), f"{CONFIG_FILE} cannot be read: {error.strerror}"
    return ModelConfig(), ""


def _without_versions(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.onnx"))
    if found:
        return f"{named(found[0])} is in no version folder: move it to 1/{MODEL_FILE} in the model's folder"
    if any(folder.iterdir()):
        return f"it has no version folder with a model file, such as 1/{MODEL_FILE}"
    return f"its folder is empty, want a version in it, such as 1/{MODEL_FILE}"


def _with_triton(file: Path, root: Path, settings: ModelConfig) -> tuple[ModelConfig, str]:
    """The settings, completed from Triton's configuration where they leave the batch size open, and a note on it.

    Only its `max_batch_size` is used; 0 means that the first dimension of the tensors is not a batch dimension. Names
    and shapes are in the model file.
    """
    try:
        if not file.is_file():
            return settings, ""
        text = files.read(file, root, _MOST_SETTINGS).decode(errors="replace")
    except BadModelFile as error:
        return settings, error.message
    except OSError as error:
        return settings, f"{TRITON_FILE} cannot be read: {error.strerror}"
    match = _TRITON_BATCH.search(text)
    if match is None:
        return settings, f"{TRITON_FILE} does not set max_batch_size, and nothing else of it is read"
    most = int(match[1])
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


def stamp(file: Path, *, own: bool = True) -> Stamp | None:
    """The state of a model file and of those beside it; None if there is no such file.

    own  whether its folder is its own; otherwise only files whose names begin like that of the model file count
    """
    state = _state(file)
    if state is None:
        return None
    beside = []
    try:
        names = sorted(entry.name for entry in file.parent.iterdir())
    except OSError:
        names = []
    for name in names:
        if name not in (file.name, *_NO_DATA) and not name.startswith(".") and (own or _is_alike(name, file)):
            other = _state(file.parent / name)
            if other is not None:
                beside.append((name, *other))
    return Stamp(*state, tuple(beside))


def _is_alike(name: str, file: Path) -> bool:
    # lenet.onnx.data, lenet_weights.bin; not lenet-int8.onnx, which is another model
    return name.startswith(tuple(f"{file.stem}{sign}" for sign in "._-")) and not name.endswith(file.suffix)


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def wanted(
    listing: Listing,
    setting: VersionsSetting,
    failed: Container[tuple[int, Stamp]] = (),
    serving: Container[int] = (),
    late: Container[int] = (),
) -> list[int]:
    """The versions that should serve, from the highest down: of those that `setting` selects, the ones that have a file
    and have not failed in its current state.

    serving  versions that serve: they stay while they have a file, whatever became of it
    late     versions that may be long in coming: until then, the next one takes the place of each
    """
    if listing.problem:
        return []
    sound = [
        version
        for version, stamp in sorted(listing.files.items(), reverse=True)
        if version in serving or (version, stamp) not in failed
    ]
    if isinstance(setting, tuple):
        return [version for version in sound if version in setting]
    places = len(sound) if setting == "all" else int(setting.split()[1])
    chosen = []
    for version in sound:
        if places > 0:
            chosen.append(version)
            places -= version not in late
    return chosen
