"""Decides which files of the repository the engine may load: those that a trial has survived, as private copies.

The copy is what is tried, loaded, and loaded again after the engine's death. So whatever happens to the file in the
repository, a version that was accepted goes on until another is accepted in its place.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from convoy.service import files
from convoy.service.config import Config, ModelConfig
from convoy.service.engine import session
from convoy.service.engine.file_trials import FileTrials, Job, Verdict, job_of
from convoy.service.engine.providers import gpu_offered
from convoy.service.errors import BadModelFile
from convoy.service.machine import cores
from convoy.service.repository import MODEL_FILE, Stamp
from convoy.service.sources import Place, Source

PATIENCE = 10.0  # seconds after which nothing waits any longer for a trial
_MOST_TRIALS = 8  # at the same time; no more than one for each core unless some are slow
_NAMES_SECONDS = 60.0  # for reading the names of external data, where there are no trials
_SLOW = 5.0  # seconds after which a trial no longer counts as one that keeps others waiting
_PIECE = 1 << 20
_FORMAT = 1  # of a trial: another one repeats all trials
_RECORD = "serving.json"
_COPIES = "copies"


class Quarantined(BadModelFile):
    """A file has ended its trial, or did not come to an end."""


class Candidate(NamedTuple):
    """A version in one state of its files, with the settings of its model."""

    model: str
    version: int
    stamp: Stamp
    settings: ModelConfig


class Served(msgspec.Struct, frozen=True):
    """A version that serves, and the copy that it was loaded from."""

    model: str
    version: int
    stamp: Stamp
    settings: ModelConfig
    file: str


class Folders(NamedTuple):
    """Where an engine keeps what must outlast it.

    store   of the server, which ends with it
    device  of the engine: each has a part of `store` of its own
    cache   of all servers of this user
    """

    store: Path
    device: int
    cache: Path


@dataclass(frozen=True, slots=True)
class _Trial:
    future: Future[Path]
    began: float


class Acceptance:
    """The trials of an engine. One writer: the loader's thread, which calls all public methods; none of them blocks.

    Copies, the record of what serves, and verdicts that another trial might not repeat end with the server. Other
    verdicts lie in the cache.
    """

    def __init__(
        self,
        source: Source,
        config: Config,
        trials: FileTrials,
        folders: Folders,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changed` is called, in any thread, when a trial has ended, and when it has lasted for PATIENCE."""
        self._source = source
        self._config = config
        self._trials = trials
        self._store = folders.store / str(folders.device)
        self._cache = folders.cache
        self._recorded = b""
        self._changed = changed
        self._clock = clock
        self._running: dict[Candidate, _Trial] = {}
        self._threads = ThreadPoolExecutor(_MOST_TRIALS, "trial")
        self._turns = threading.Semaphore(cores())

    def ask(self, candidate: Candidate) -> Path | None:
        """Returns the copy of an accepted version; None while it is tried.

        Raises BadModelFile if it must not be loaded. The next question about it then begins another trial.
        """
        trial = self._running.get(candidate)
        if trial is None:
            future = self._threads.submit(self._examine, candidate)
            self._running[candidate] = _Trial(future, self._clock())
            future.add_done_callback(lambda _: self._changed())
            return None
        if not trial.future.done():
            return None
        try:
            return trial.future.result()
        except BadModelFile:
            del self._running[candidate]
            raise

    def is_late(self, candidate: Candidate) -> bool:
        """Returns whether a trial has lasted so long that nothing may wait for it."""
        trial = self._running.get(candidate)
        return trial is not None and not trial.future.done() and self._clock() >= trial.began + PATIENCE

    def keep(self, candidates: Collection[Candidate], served: Collection[Served]) -> None:
        """Forgets all versions but these, and removes the copies of the others."""
        for candidate, trial in list(self._running.items()):
            if candidate not in candidates and trial.future.done():
                del self._running[candidate]
        used = {Path(each.file).parents[2].name for each in served}
        for trial in self._running.values():
            if not trial.future.done():
                return  # it may be about to use a copy that nothing else uses
            if trial.future.exception() is None:
                used.add(trial.future.result().parents[2].name)
        with suppress(OSError):
            for folder in (self._store / _COPIES).iterdir():
                if folder.name not in used:
                    shutil.rmtree(folder, ignore_errors=True)

    def served_before(self) -> list[Served]:
        """Returns what the previous engine of this server and device served."""
        with suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self._store / _RECORD).read_bytes(), type=list[Served])
        return []

    def record(self, served: Collection[Served]) -> None:
        """Records what serves, for the next engine."""
        data = msgspec.json.encode(list(served))
        if data != self._recorded:
            with suppress(OSError):  # a full disk: then the next engine starts from the repository alone
                _write(self._store / _RECORD, data)
                self._recorded = data

    def _examine(self, candidate: Candidate) -> Path:
        """In a thread of its own: copies the files, and tries the copy unless its verdict is known."""
        try:
            copy = self._copied(candidate)
        except FileNotFoundError:
            raise BadModelFile("its files went away while they were read") from None
        except OSError as error:
            raise BadModelFile(f"its files cannot be copied: {error.strerror}") from error
        if not self._config.repository.trial_seconds:
            return copy
        key = _digest(msgspec.json.encode([copy.parents[2].name, session.VERSION, _FORMAT]))
        verdict = self._known(key)
        if verdict is None:
            with self._turn():
                verdict = self._trials.load(self._job(copy, candidate))
            self._note(key, verdict)
        if verdict.reason and verdict.holds != "once":
            raise Quarantined(f"{verdict.reason}; it is tried again when it changes")
        if verdict.reason:
            raise BadModelFile(verdict.reason)
        return copy

    def _job(self, copy: Path, candidate: Candidate) -> Job:
        errors = not gpu_offered(candidate.settings.provider or self._config.engine.provider)
        return job_of(copy, self._config.repository, errors=errors)

    def _turn(self) -> "_Turn":
        return _Turn(self._turns, self._changed)

    def _copied(self, candidate: Candidate) -> Path:
        """Copies a version's model file, and the data beside it that model.toml lists by their digests, or that a file
        by itself names. Raises OSError, and BadModelFile if a file must not be read."""
        place = self._source.place(candidate.model, candidate.version)
        stamp, pinned = candidate.stamp, candidate.settings.sha256
        copies = self._store / _COPIES
        incoming = copies / f".{threading.get_ident()}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        try:
            own = stamp.inode, stamp.nbytes, stamp.modified_ns
            digests = {MODEL_FILE: self._copy(place.file, place, incoming / MODEL_FILE, own, pinned)}
            for name, state in self._data(place, candidate, incoming / MODEL_FILE).items():
                digests[name] = self._copy(place.file.with_name(name), place, incoming / name, state, pinned)
            kept = sorted((name, digest) for name, digest in digests.items() if digest)
            target = copies / _digest(msgspec.json.encode(kept)) / candidate.model / str(candidate.version)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():  # otherwise the same content is there already
                incoming.rename(target)
            return target / MODEL_FILE
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _data(self, place: Place, candidate: Candidate, copy: Path) -> dict[str, tuple[int, ...] | None]:
        """The files of data to copy, and the state in which each was found; None if nobody has looked."""
        found = {name: (inode, nbytes, modified) for name, inode, nbytes, modified in candidate.stamp.beside}
        if candidate.settings.sha256:
            return {**found}
        if not place.alone:
            return {}
        # Whoever has named the file to the server has chosen what it names beside itself. In a repository, that is
        # whoever may write there. The names are read in the process of a trial: the file may be anything.
        seconds = self._config.repository.trial_seconds or _NAMES_SECONDS
        job = msgspec.structs.replace(self._job(copy, candidate), seconds=seconds, names=True)
        names = self._trials.load(job).data
        plain = [name for name in names if name == Path(name).name and name not in (MODEL_FILE, "..", ".")]
        return {name: found.get(name) for name in plain if place.file.with_name(name).exists()}

    @staticmethod
    def _copy(source: Path, place: Place, target: Path, state: tuple[int, ...] | None, pinned: Collection[str]) -> str:
        """Copies one file, in the state in which it was found. Returns its digest; "" if the file is not listed and is
        not the model file."""
        with files.opened(source, place.root) as descriptor:
            state = state or _state(descriptor)
            digest = _copy(descriptor, target)
            status = os.fstat(descriptor)
            changed = _state(descriptor) != state
        if changed:
            raise BadModelFile("its file changed while it was read")
        if not pinned and status.st_nlink > 1:
            links = f"{source.name} has {status.st_nlink} hard links"
            raise BadModelFile(f"{links}: copy it, or list the SHA-256 of its content under sha256 in model.toml")
        if pinned and digest not in pinned and target.name == MODEL_FILE:
            raise BadModelFile(f"model.toml does not list its SHA-256, {digest}")
        if pinned and digest not in pinned:
            target.unlink()
            return ""
        return digest

    def _known(self, key: str) -> Verdict | None:
        for folder in (self._store, self._cache):
            with suppress(OSError, msgspec.MsgspecError):
                return msgspec.json.decode((folder / _file_of(key)).read_bytes(), type=Verdict)
        return None

    def _note(self, key: str, verdict: Verdict) -> None:
        if verdict.holds != "once":
            with suppress(OSError):  # another trial will find it again
                folder = self._cache if verdict.holds == "always" else self._store
                _write(folder / _file_of(key), msgspec.json.encode(verdict))


class _Turn:
    """A trial's turn, as a context: others wait for theirs, but not for long. Reports when PATIENCE is over."""

    def __init__(self, turns: threading.Semaphore, changed: Callable[[], None]) -> None:
        self._turns = turns
        self._lock = threading.Lock()  # guards `_holds`
        self._holds = True
        self._timers = [threading.Timer(_SLOW, self._release), threading.Timer(PATIENCE + 0.1, changed)]

    def __enter__(self) -> None:
        self._turns.acquire()
        for timer in self._timers:
            timer.daemon = True
            timer.start()

    def __exit__(self, *error: object) -> None:
        for timer in self._timers:
            timer.cancel()
        self._release()

    def _release(self) -> None:
        with self._lock:
            held, self._holds = self._holds, False
        if held:
            self._turns.release()


def _state(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _copy(descriptor: int, target: Path) -> str:
    """Copies an open file. Returns the SHA-256 of its content."""
    digest = hashlib.sha256()
    with target.open("wb") as copy:
        while piece := os.read(descriptor, _PIECE):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_of(key: str) -> str:
    return f"verdicts/{key}.json"


def _write(file: Path, data: bytes) -> None:
    """Writes a file as a whole. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    incoming = file.with_name(f".{file.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        incoming.write_bytes(data)
        incoming.replace(file)
    finally:
        incoming.unlink(missing_ok=True)
