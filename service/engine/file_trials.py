"""FileTrials: whatever somebody put into the repository is read in a process of its own first, which may die or hang.

Such a process is a fork of one that has imported everything and has no sessions and no threads. It has limits of memory
and time, and answers over a pipe.
"""

import ctypes
import json
import logging
import os
import resource
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service import config
from convoy.service.config import MIB, EngineConfig, ModelConfig, RepositoryConfig
from convoy.service.engine import external_data, row_independence
from convoy.service.engine import session as sessions
from convoy.service.engine.providers import Device
from convoy.service.engine.session import Session
from convoy.service.errors import BadConfig, BadModelFile, ConvoyError, named
from convoy.service.ipc.slots import memory_file
from convoy.service.machine import memory_bytes

log = logging.getLogger(__name__)

_SETTINGS_SECONDS = 5.0  # for reading one model.toml
_HARMLESS_SETTINGS = 2048  # bytes; the worst text of this length is read within milliseconds, and needs no trial
_SILENCE = 5.0  # seconds beyond the end of a trial, after which the process that starts them hangs
_SIDES = (1, 8, 64, 224)  # of free axes, for a file that does not name its sizes: until one of them runs
_MOST_DATA = 4096  # files of external data of one model
_NICE = 10  # trials give way to what serves
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# Signals of a fault in the program itself: they come again with the same file. Others come from outside.
_FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}


class Job(msgspec.Struct, frozen=True, tag=True):
    """The trial of a model file: it is loaded, and runs once.

    errors  whether an error in loading or running it is final, because the engine would use the same provider
    names   it is only read, for the names of its external data
    """

    file: str
    seconds: float
    memory_bytes: int
    errors: bool
    names: bool = False


class Settings(msgspec.Struct, frozen=True, tag=True):
    """The trial of a model.toml, which travels in a memory file of its own."""

    nbytes: int
    seconds: float
    memory_bytes: int = 1 << 30


class Verdict(msgspec.Struct, frozen=True):
    """The end of a trial. `reason` says why the file is not to be used; "" if it may.

    holds  for how long it answers for the same content: `once` for an error that may pass, such as a lack of memory;
           `server` for an end that the state of the machine may have caused
    """

    reason: str = ""
    holds: Literal["once", "server", "always"] = "once"
    settings: ModelConfig | None = None
    data: tuple[str, ...] = ()  # names of external data, for a job that asks for them


class _Ended(NamedTuple):
    answer: bytes  # of the process, empty if it died before
    code: int  # its exit code, or the negative number of the signal that ended it
    late: bool


class FileTrials:
    """The parent's side. Methods may be called in any thread; each blocks until its trial has ended."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        """`connection` leads to a process that runs `serve`: see `fork` and `spawn`."""
        self._connection = connection
        self._pid = pid
        self._lock = threading.Lock()  # guards both

    def close(self) -> None:
        """Ends that process, and all trials with it."""
        with self._lock:
            self._connection.close()
            os.kill(
                self._pid, signal.SIGKILL
            )  # a process that is stopped would not notice that the connection is closed
            os.waitpid(self._pid, 0)

    def load(self, job: Job) -> Verdict:
        """Loads a model file and runs it once."""
        return _verdict(self._run(job), "loading it and a first run", job.seconds)

    def settings(self, text: bytes) -> ModelConfig:
        """Reads a model.toml. Raises BadConfig."""
        if len(text) <= _HARMLESS_SETTINGS:
            return config.load_model_config(text)
        job = Settings(len(text), _SETTINGS_SECONDS)
        content = memory_file(len(text))
        try:
            os.pwrite(content, text, 0)
            verdict = _verdict(self._run(job, content), "reading it", job.seconds)
        finally:
            os.close(content)
        if verdict.settings is None:
            raise BadConfig(verdict.reason or "cannot be read")
        return verdict.settings

    def _run(self, job: Job | Settings, *content: int) -> _Ended:
        reading, writing = os.pipe()
        try:
            try:
                pid = self._send(job, [writing, *content])
            finally:
                os.close(writing)
            received = _read(reading, time.monotonic() + job.seconds + _SILENCE)
        finally:
            os.close(reading)
        if received is None:
            self._kill(pid)
            return _Ended(b"", 1, late=False)
        # The answer, then a line by the process that has waited for its end.
        answer, _, last = received.rpartition(b"\n")
        if not last:
            return _Ended(b"", 1, late=False)  # both are gone
        code, late = json.loads(last)
        return _Ended(answer, code, late)

    def _send(self, job: Job | Settings, descriptors: list[int]) -> int:
        """Returns the process id of the other side."""
        data = msgspec.msgpack.encode(job)
        with self._lock:
            try:
                socket.send_fds(self._connection, [data], descriptors)
            except OSError:  # that process has ended, such as for lack of memory
                log.warning("the process that tries files has ended; another takes its place")
                self._connection.close()
                os.waitpid(self._pid, 0)
                self._connection, self._pid = _spawn()
                socket.send_fds(self._connection, [data], descriptors)
            return self._pid

    def _kill(self, pid: int) -> None:
        """Ends the other side, which hangs: the next trial finds it gone."""
        with self._lock:
            if pid == self._pid:
                log.error("the process that tries files hangs; it is killed")
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _read(descriptor: int, until: float) -> bytes | None:
    """Returns all that comes before the other side closes; None if it has not by then."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    received = b""
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        more = os.read(descriptor, 1 << 16)
        if not more:
            return received
        received += more
    return None


def job_of(file: Path, settings: RepositoryConfig, *, errors: bool) -> Job:
    """The trial of a model file under these settings."""
    most = settings.trial_memory_mib * MIB or memory_bytes()
    return Job(str(file), settings.trial_seconds, most, errors)


def fork() -> FileTrials:
    """Forks the process that starts trials. Only for a process without threads of its own and without sessions."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            serve(theirs)
        finally:
            os._exit(1)
    theirs.close()
    return FileTrials(ours, pid)


def spawn() -> FileTrials:
    """Starts the process that starts trials, from a process that may have threads."""
    return FileTrials(*_spawn())


def _spawn() -> tuple[socket.socket, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "convoy.service.engine.file_trials", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    process.returncode = 0  # its owner waits for it by its id
    return ours, process.pid


def _verdict(ended: _Ended, what: str, seconds: float) -> Verdict:
    if ended.late:
        return Verdict(f"{what} did not end within {seconds:g} s", "server")
    if ended.code == 0:
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(ended.answer, type=Verdict)
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return Verdict(f"{what} ended a process with {name}", "always" if -ended.code in _FAULTS else "server")
    return Verdict("the process that tried it has ended without an answer")


@dataclass(slots=True)
class _Child:
    pid: int
    descriptor: int  # for the answer
    until: float


def serve(connection: socket.socket) -> NoReturn:
    """Forks a process for each trial, waits for it, and kills it when its time is up. Exits with the other side."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text("convoy-trials")
    _end_with_parent()
    _close_all_but(connection.fileno())
    logging.disable()  # what matters of a trial is its verdict
    children: dict[int, _Child] = {}  # by pidfd
    with selectors.DefaultSelector() as ready:
        ready.register(connection, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            waits = [max(0.0, child.until - now) for child in children.values()]
            for key, _ in ready.select(min(waits, default=None)):
                if key.fileobj is connection:
                    pidfd, child = _begin(connection)
                    children[pidfd] = child
                    ready.register(pidfd, selectors.EVENT_READ)
                else:
                    assert isinstance(key.fd, int)
                    ready.unregister(key.fd)
                    _finish(key.fd, children.pop(key.fd))
            for pidfd in _late(children):
                ready.unregister(pidfd)
                _finish(pidfd, children.pop(pidfd), late=True)


def _late(children: Mapping[int, _Child]) -> list[int]:
    now = time.monotonic()
    return [pidfd for pidfd, child in children.items() if child.until <= now]


def _begin(connection: socket.socket) -> tuple[int, _Child]:
    data, (descriptor, *content), _, _ = _receive(connection)
    job = msgspec.msgpack.decode(data, type=Job | Settings)
    pid = os.fork()
    if pid == 0:
        _answer(job, descriptor, content)
    for each in content:
        os.close(each)
    return os.pidfd_open(pid), _Child(pid, descriptor, time.monotonic() + job.seconds)


def _receive(connection: socket.socket) -> tuple[bytes, list[int], int, Any]:
    received = socket.recv_fds(connection, 1 << 16, 2)
    if not received[0]:
        os._exit(0)  # the other side has ended
    return received


def _finish(pidfd: int, child: _Child, *, late: bool = False) -> None:
    if late:
        os.kill(child.pid, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(status)
    late = late or (code < 0 and child.until <= time.monotonic())  # the kernel's limit of CPU time may come first
    line = json.dumps([code, late])
    with suppress(BrokenPipeError):
        os.write(child.descriptor, f"\n{line}".encode())
    os.close(child.descriptor)


def _answer(job: Job | Settings, descriptor: int, content: list[int]) -> NoReturn:
    """In a process of its own: one trial."""
    code = 1
    try:
        _limit(job)
        _close_all_but(descriptor, *content)  # another trial ends for its reader when nobody has its pipe any more
        verdict = _try(job) if isinstance(job, Job) else _try_settings(os.pread(content[0], job.nbytes, 0))
        os.write(descriptor, msgspec.json.encode(verdict))
        code = 0
    finally:
        os._exit(code)


def _limit(job: Job | Settings) -> None:
    _end_with_parent()
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # a library that aborts explains itself at length
        os.dup2(silence, number)
    seconds = int(job.seconds) + 1
    for what, most in (
        (resource.RLIMIT_AS, job.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 1 << 16),
        (resource.RLIMIT_CPU, seconds),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    os.nice(_NICE)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _close_all_but(*kept: int) -> None:
    last = 2
    for number in (*sorted(kept), 1 << 16):
        os.closerange(last + 1, number)
        last = number


def _try_settings(text: bytes) -> Verdict:
    try:
        return Verdict(settings=config.load_model_config(text))
    except BadConfig as error:
        return Verdict(error.message[:1000])


def _try(job: Job) -> Verdict:
    if job.names:
        try:
            return Verdict(data=tuple(sorted(external_data.locations(Path(job.file)))[:_MOST_DATA]))
        except BadModelFile:
            return Verdict()  # its trial will find out
    try:
        _check_data(Path(job.file))
    except BadModelFile as error:
        return Verdict(error.message)
    try:
        session = sessions.load_on(Path(job.file), Device("cpu", EngineConfig()), 1)
        if session.document is None:
            _run_once(session)
    except (MemoryError, ConvoyError) as error:
        # Errors of a file that will run elsewhere are reported there.
        final = job.errors or not isinstance(error, BadModelFile)
        return Verdict((str(error) or type(error).__name__) if final else "")
    try:
        sessions.check_seal(session, Path(job.file))
    except BadModelFile as error:
        return Verdict(error.message)
    return Verdict(holds="always")


def _check_data(file: Path) -> None:
    """Raises BadModelFile if the file names data that are not beside its copy, and so are not listed in model.toml."""
    for name in sorted(external_data.locations(file)):
        if name == file.name or name not in {beside.name for beside in file.parent.iterdir()}:
            raise BadModelFile(
                f"it names data in another file, {named(name)}: put that beside it, and list the SHA-256 of both under "
                "sha256 in model.toml"
            )


def _run_once(session: Session) -> None:
    """Runs a network about which nothing is known, and what the engine will run to learn more."""
    for side in _SIDES:
        if row_independence.row_bytes(session.inputs, side) > row_independence.LARGEST_ROW:
            break  # nobody can know whether it runs before somebody sends it as much
        try:
            session.run([_zeros(spec.shape, spec.dtype, side) for spec in session.inputs])
            break
        except Exception:  # it may want other sizes or values; whoever calls it will know which
            continue
    if session.batched:
        row_independence.trial(session)


def _zeros(shape: tuple[int | None, ...], dtype: str, side: int) -> NDArray[np.generic]:
    return np.zeros([side if length is None else length for length in shape], dtype)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
