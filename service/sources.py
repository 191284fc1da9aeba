"""Where models lie: in a repository, and by themselves elsewhere."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from convoy.service import repository
from convoy.service.config import ModelConfig, load_model_config
from convoy.service.errors import BadConfig
from convoy.service.repository import MAX_NAME, MODEL_FILE, PROFILE_FILE, Listing, ReadSettings

log = logging.getLogger(__name__)

_MOST_KNOWN = 1024  # contents of settings whose meaning is kept
_FIRST = 1  # the version of a file by itself
_SUFFIX = ".onnx"
_MOST_SCANS = 8  # in succession, while links are exchanged
_MOST_LINKS = 40  # one after the other, as for the kernel
_NO_NAME = re.compile(r"[^a-z0-9_-]+")


class Place(NamedTuple):
    """Where the files of a version lie.

    root   no link beside the file may lead out of this folder
    alone  whether it is a file by itself: what it names beside itself belongs to it
    """

    file: Path
    root: Path
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """The models of a server.

    root   the repository, if there is one
    single models outside it, by name: a model file, or a folder that has one, or versions, in it. These take the place
           of a model of the repository with the same name
    cache  a folder in which something may be kept for them: nothing is written beside a file that is by itself
    leaves_repository  whether nothing is written into the repository and model folders either
    """

    root: Path | None = None
    single: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    leaves_repository: bool = False

    @classmethod
    def named(cls, root: str, single: Mapping[str, str], cache: Path | None = None) -> "Source":
        """The source with these paths; "": there is no repository."""
        return cls(Path(root) if root else None, {name: Path(path) for name, path in single.items()}, cache)

    def check(self) -> None:
        """Raises BadConfig if there is nothing where the source says."""
        if self.root is not None and not self.root.is_dir():
            raise BadConfig(f"model repository {str(self.root)!r} is not a directory: create it, or name another")
        for name, path in self.single.items():
            if not path.exists():
                raise BadConfig(f"model {name!r} is to be in {str(path)!r}, but there is no such file or folder")

    def absolute(self) -> "Source":
        """The same, whatever the working directory."""
        single = {name: path.absolute() for name, path in self.single.items()}
        return replace(self, root=self.root.absolute() if self.root is not None else None, single=single)

    def scan(self, read_settings: ReadSettings = load_model_config) -> dict[str, Listing]:
        """The contents of each model's folder, by name. Raises OSError if the repository cannot be read.

        If a link leads elsewhere meanwhile, as when git-sync or Kubernetes exchange one, it is scanned again: a part of
        what was there and a part of what is there now would be a repository without some versions.
        """
        for _ in range(_MOST_SCANS):
            before = self._links()
            listings = self._scan(read_settings)
            if self._links() == before:
                break
        return listings

    def _links(self) -> list[tuple[str, str]]:
        """Every link on the way to the models and in the repository itself, and where it leads."""
        found = [(str(path), os.path.realpath(path)) for path in self.watched()]
        if self.root is not None:
            with os.scandir(self.root) as entries:
                found += sorted((each.name, os.path.realpath(each)) for each in entries if each.is_symlink())
        return found

    def _scan(self, read_settings: ReadSettings) -> dict[str, Listing]:
        listings = repository.scan(self.root, read_settings) if self.root is not None else {}
        for name, path in self.single.items():
            listings[name] = _listing(path, read_settings)
        return listings

    def place(self, model: str, version: int) -> Place:
        """Where a version lies. Only for names that `scan` returned."""
        path = self.single.get(model)
        if path is None:
            assert self.root is not None
            return Place(repository.model_file(self.root, model, version), self.root)
        try:
            file = _file_by_itself(path)
        except OSError:  # it has become unreadable since
            file = None
        if file is None:
            return Place(path / str(version) / MODEL_FILE, path)
        return Place(file, file.parent, alone=True)

    def keeping(self, model: str, version: int) -> Path:
        """The folder for what is kept about a version: that of its file, or one in the cache."""
        place = self.place(model, version)
        if self.cache is None or not (place.alone or self.leaves_repository):
            return place.file.parent
        from hashlib import sha256  # noqa: PLC0415  the supervisor, which starts everything, does not need it

        # The path, not the content: a replaced file takes the place of the one before.
        key = sha256(os.fsencode(place.file.absolute())).hexdigest()[:32]
        folder = self.cache / "alone" / key
        with suppress(OSError):  # a full disk: then nothing is kept
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / PROFILE_FILE).exists():
                shutil.copyfile(place.file.with_name(PROFILE_FILE), folder / PROFILE_FILE)
        return folder

    def watched(self) -> Iterator[Path]:
        """The files and folders whose changes matter, whether they are there or not."""
        if self.root is not None:
            yield self.root
        yield from self.single.values()


def source_of(path: Path | None = None, root: Path | None = None, models: Iterable[str] = ()) -> Source:
    """The source that a command's arguments name.

    path    a model file, the folder of a model, or a repository
    root    a repository
    models  NAME=PATH, where PATH is a model file or the folder of a model
    Raises BadConfig.
    """
    single: dict[str, Path] = {}
    for text in models:
        name, equals, where = text.partition("=")
        if not (equals and where):
            raise BadConfig(f"--model {text!r}, want NAME=PATH such as lenet5=exports/lenet5.onnx")
        _add(single, name, Path(where).expanduser())  # no shell expands a ~ after =
    if path is not None and not path.exists():
        raise BadConfig(f"{str(path)!r} does not exist, want an {_SUFFIX} file, or a model repository")
    if path is not None and path.is_dir() and not _is_of_one_model(path):
        if root is not None:
            raise BadConfig(f"{str(path)!r} and {str(root)!r} are both model repositories, want one")
        root = path
    elif path is not None:
        if path.is_file() and path.suffix != _SUFFIX:
            raise BadConfig(f"{str(path)!r} is no {_SUFFIX} file: convoy export and convoy adopt write them")
        _add(single, name_of(path), path)
    if root is None and not single:
        raise BadConfig(
            "there is nothing to serve: name an ONNX file, as in 'convoy serve lenet5.onnx', or a model repository, as "
            "in 'convoy serve --repository repository'"
        )
    source = Source(root, single)
    source.check()
    return source


def name_of(path: Path) -> str:
    """The name of the model in a file or folder: that of the file, or of the folder if that of the file says nothing,
    in the characters that a name may have."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  a link's own name, without ..
    if path.is_file():
        path = path.parent if path.stem == "model" else path.with_suffix("")
    if repository.VERSION.fullmatch(path.name):
        path = path.parent
    return _NO_NAME.sub("-", path.name.lower()).strip("-")[:MAX_NAME] or "model"


def _add(single: dict[str, Path], name: str, path: Path) -> None:
    if not repository.NAME.fullmatch(name):
        raise BadConfig(f"model name {name!r}, want 1 to {MAX_NAME} of a-z, 0-9, - and _")
    if name in single:
        raise BadConfig(f"model {name!r} is named twice, want one file or folder for it")
    single[name] = path


def _is_of_one_model(folder: Path) -> bool:
    """Whether a folder is that of a model, with a model file or versions in it, and not a repository.

    Raises BadConfig for a folder of several model files.
    """
    if any(repository.VERSION.fullmatch(file.parent.name) for file in folder.glob(f"*/{MODEL_FILE}")):
        return True
    if (folder / MODEL_FILE).is_file():
        return True
    found = sorted(file.name for file in folder.glob(f"*{_SUFFIX}"))
    if len(found) > 1 and not any(folder.glob(f"*/*/{MODEL_FILE}")):
        raise BadConfig(
            f"{str(folder)!r} is no model repository, but has {len(found)} {_SUFFIX} files: name one of them, or each "
            f"by --model NAME={folder / found[0]}"
        )
    return len(found) == 1 and not any(folder.glob(f"*/*/{MODEL_FILE}"))


def _listing(path: Path, read_settings: ReadSettings) -> Listing:
    try:
        file = _file_by_itself(path)
        if file is None and path.is_dir():
            return repository.scan_model(path, path, read_settings)
        if file is None:
            return Listing(empty="its file is missing")
        # In a folder that is its own, any file may belong to it; elsewhere those alone that are named alike.
        stamp = repository.stamp(file, own=path.is_dir())
        beside = path if path.is_dir() else path.parent
        settings, problem = repository.settings_in(beside, beside, read_settings)
    except OSError as error:
        return Listing(problem=f"it cannot be read: {error.strerror}")
    if stamp is None:
        return Listing(empty="its file is missing")
    return Listing(settings, problem, {_FIRST: stamp})


def _file_by_itself(path: Path) -> Path | None:
    """The model file that a path names, or the only one in the folder that it names; None if there are versions."""
    if not path.is_dir():
        return _target(path) if path.exists() else None
    if any(repository.VERSION.fullmatch(entry.name) and entry.is_dir() for entry in path.iterdir()):
        return None
    if (path / MODEL_FILE).exists():
        return path / MODEL_FILE
    found = [file for file in path.iterdir() if file.suffix == _SUFFIX and file.is_file()]
    return found[0] if len(found) == 1 else None


def _target(file: Path) -> Path:
    """What a path leads to that may itself be a link: anywhere, since somebody has named it to the server.

    Links of the folders stay as they are: through /proc, as KServe makes them, they lead where no path does.
    """
    for _ in range(_MOST_LINKS):
        if not file.is_symlink():
            break
        file = file.parent / file.readlink()
    return file


class Scanner:
    """Scans of the models. One writer: the loader's thread."""

    def __init__(self, source: Source, read_settings: ReadSettings = load_model_config) -> None:
        self.unreadable: str | None = None  # why the repository could not be read, at the last scan
        self._source = source
        self._read_settings = lru_cache(maxsize=_MOST_KNOWN)(_outcome(read_settings))
        self._ignored: set[str] = set()  # folders, at the last scan

    def run(self) -> Mapping[str, Listing] | None:
        """Returns the contents of each model's folder; None if the repository cannot be read. Logs problems once."""
        try:
            listings = self._source.scan(self._settings)
            ignored = set(repository.misnamed(self._source.root)) if self._source.root is not None else set()
        except OSError as error:
            if error.strerror != self.unreadable:
                log.error("model repository cannot be read: %s; loaded versions continue to serve", error.strerror)
            self.unreadable = error.strerror
            return None
        self.unreadable = None
        for name in ignored - self._ignored:
            log.warning("folder %r is ignored: a model's name is 1 to %d of a-z, 0-9, - and _", name, MAX_NAME)
        self._ignored = ignored
        return listings

    def _settings(self, content: bytes) -> ModelConfig:
        # Each content once: reading it may take a trial.
        outcome = self._read_settings(content)
        if isinstance(outcome, BadConfig):
            raise outcome
        return outcome


def _outcome(read: ReadSettings) -> Callable[[bytes], ModelConfig | BadConfig]:
    def outcome(content: bytes) -> ModelConfig | BadConfig:
        try:
            return read(content)
        except BadConfig as error:
            return error

    return outcome
