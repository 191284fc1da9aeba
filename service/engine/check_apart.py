"""The check of a repository in a process of its own: a file that ends it fails alone, and another process goes on.

The trial of a file ends before the check loads it, and may be switched off. What is loaded here may end a process, too.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from convoy.service import log
from convoy.service.config import Config
from convoy.service.errors import BadConfig
from convoy.service.sources import Source


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The outcome for one version.

    state   `serves` or `fails` as in a server that starts now; `left out` if it could serve, but others do
    reason  why it fails; if it does not, what is limited
    """

    model: str
    version: int  # 0: the model has none
    state: Literal["serves", "left out", "fails"]
    reason: str = ""
    seconds: float = 0.0  # that its trial, loading it and its first runs have taken
    provider: str = ""
    max_batch_size: int = 0  # 1: requests run one at a time


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """All versions, by model and from the highest down, and what else deserves a look."""

    versions: tuple[Checked, ...]
    warnings: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether a version fails, or a server would have nothing to serve."""
        states = {each.state for each in self.versions}
        return "fails" in states or "serves" not in states


class Job(msgspec.Struct, frozen=True):
    """To that process: what to check, and where. Paths are bytes: they need not be UTF-8.

    store, cache, device  see Folders
    known                 versions that have been tried before
    """

    config: Config
    root: bytes | None
    single: dict[str, bytes]
    kept: bytes | None  # see Source.cache
    leaves_repository: bool
    store: bytes
    cache: bytes
    device: int
    known: tuple[Checked, ...] = ()


class _Begun(msgspec.Struct, frozen=True, tag=True):
    """From that process: it tries a version now."""

    model: str
    version: int


class _Refused(msgspec.Struct, frozen=True, tag=True):
    """From that process: nothing can be checked."""

    reason: str


_Message = _Begun | Checked | Outcome | _Refused


def job(source: Source, config: Config, store: Path, cache: Path, device: int) -> Job:
    """Returns the job for a source, whose paths are absolute."""
    return Job(
        config=config,
        root=None if source.root is None else os.fsencode(source.root),
        single={name: os.fsencode(path) for name, path in source.single.items()},
        kept=None if source.cache is None else os.fsencode(source.cache),
        leaves_repository=source.leaves_repository,
        store=os.fsencode(store),
        cache=os.fsencode(cache),
        device=device,
    )


def check(job: Job, tell: Callable[[str], None] = lambda what: None) -> Outcome:
    """Tries all versions in turn, and passes the name of each to `tell`. Raises BadConfig if nothing can be checked."""
    while True:
        began, trying = time.monotonic(), None
        known = list(job.known)
        with subprocess.Popen(
            [sys.executable, "-m", "convoy.service.engine.check_apart"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            try:
                for message in _messages(process, job):
                    if isinstance(message, Outcome):
                        return message
                    if isinstance(message, _Refused):
                        raise BadConfig(message.reason)
                    if isinstance(message, Checked):
                        known.append(message)
                        trying = None
                    else:
                        began, trying = time.monotonic(), message
                        tell(f"{message.model} {message.version or ''}")
            except BaseException:
                process.kill()  # nobody waits for the others
                raise
        ended = f"ended a process with {_end(process.returncode)}"
        if trying is None:
            raise BadConfig(f"the check {ended}")
        seconds = round(time.monotonic() - began, 3)
        fails = Checked(
            model=trying.model, version=trying.version, state="fails", reason=f"loading it {ended}", seconds=seconds
        )
        job = msgspec.structs.replace(job, known=(*known, fails))


def _messages(process: subprocess.Popen[bytes], job: Job) -> Iterator[_Message]:
    """Yields what the process says until it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has ended before: its code says how
        process.stdin.write(msgspec.msgpack.encode(job))
        process.stdin.close()
    for line in process.stdout:
        if line.endswith(b"\n"):  # else it has ended in the middle of it
            yield msgspec.json.decode(line, type=_Message)


def _end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main() -> None:
    """Checks what the standard input says."""
    # What the libraries write, such as before they abort, would stand among the lines of the log.
    sys.stderr = os.fdopen(os.dup(2), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    for number in (1, 2):
        os.dup2(silence, number)
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    log.configure("error", "check", job.config.server.log_format)

    def send(message: _Message) -> None:
        answers.write(msgspec.json.encode(message) + b"\n")

    try:
        send(_checked(job, send))
    except BadConfig as error:
        send(_Refused(error.message))
    except OSError as error:
        send(_Refused(f"the model repository cannot be read: {error.strerror}"))


def _checked(job: Job, send: Callable[[_Message], None]) -> Outcome:
    from convoy.service.engine import file_trials, repository_check  # noqa: PLC0415  onnxruntime, in this process alone
    from convoy.service.engine.acceptance import Folders  # noqa: PLC0415

    source = Source.named(
        os.fsdecode(job.root or b""),
        {name: os.fsdecode(path) for name, path in job.single.items()},
        None if job.kept is None else Path(os.fsdecode(job.kept)),
    )
    source = replace(source, leaves_repository=job.leaves_repository)
    folders = Folders(Path(os.fsdecode(job.store)), job.device, Path(os.fsdecode(job.cache)))
    known = {(each.model, each.version): each for each in job.known}
    trials = file_trials.spawn()
    try:
        return repository_check.check(
            source,
            job.config,
            trials,
            folders,
            known,
            lambda model, version: send(_Begun(model, version)),
            send,
        )
    finally:
        trials.close()


if __name__ == "__main__":
    main()
