"""Decides which processes hang, when one that ended starts again, and which version must stop serving.

Plain code: readings in, decisions out. The supervisor's loop reads and acts.
"""

import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from convoy.service.ipc import messages
from convoy.service.ipc.messages import Suspect

_BACKOFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before a restart, by the number of failed starts in succession
_STARTING = 60.0  # seconds until the first beat: imports from a cold disk
# While a version loads: some versions of onnxruntime hold the GIL as long as they build a session.
_LOADING = 60.0
_OFFENCES = 3  # different inputs that end engines,
_WITHIN = 60.0  # within so many seconds, end the service of their version
_GROWTH = 1.5  # times what it had when it began to serve
_TOO_LONG = 5.0  # seconds with too much memory, after which a process is replaced
_APART = 600.0  # seconds for which pictures are decoded apart after one may have crashed a decoder
_MOST_KEPT = 64  # of each kind: as many as one message can carry
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP})
_WITHDRAWN = 600.0  # seconds for which new engines do not load it
_MOST_SUSPECTS = 64  # sent to a new engine: as many as one message can carry
_MOST_SURVIVED = 1024
_ELSEWHERE = 8  # deaths that may have another cause, which count as much as one that has none


class Reading(NamedTuple):
    """A look at a process."""

    beats: int
    loading: bool  # it has announced that it loads a version
    stopped: bool  # by a signal such as SIGSTOP
    traced: bool  # by a debugger
    starved: float  # seconds, since its start, for which it was ready to run and had no CPU


class Silence:
    """How long a process has been silent. One writer: the supervisor's loop.

    Only time in which it could have spoken counts: not what the supervisor slept through itself, as when the whole
    machine was paused; not what the process waited for a CPU; and nothing while a debugger holds it.
    """

    def __init__(self, limit: float) -> None:
        self.seconds = 0.0
        self._limit = limit
        self._last = Reading(0, False, False, False, 0.0)

    @property
    def beats(self) -> int:
        """The beats at the last look."""
        return self._last.beats

    def observe(self, reading: Reading, seconds: float) -> bool:
        """Records a reading, `seconds` after the last one. Returns whether the process hangs."""
        last, self._last = self._last, reading
        if reading.beats != last.beats or reading.traced or (last.loading and not reading.loading):
            self.seconds = 0.0
            return False
        self.seconds += max(0.0, seconds - (reading.starved - last.starved))
        return self.seconds > self._patience(reading)

    def _patience(self, reading: Reading) -> float:
        if reading.stopped:
            return self._limit
        if not reading.beats:
            return max(self._limit, _STARTING)
        return max(self._limit, _LOADING) if reading.loading else self._limit


class Weight:
    """Whether a process has more memory than it may. One writer: the supervisor's loop.

    A moment does not count, nor does what it needs to serve at all: a process that is replaced for that would be
    replaced for ever.
    """

    def __init__(self, limit: int) -> None:
        """`limit` in bytes; 0: none."""
        self._limit = limit
        self._usual = 0  # bytes when it began to serve
        self._since: float | None = None  # when it began to have too much

    def exceeds(self, own: int, now: float, *, serving: bool) -> bool:
        """Records the memory of a process in bytes. Returns whether it is to be replaced."""
        if not serving or not self._limit:
            return False
        self._usual = self._usual or own
        if own <= max(self._limit, _GROWTH * self._usual):
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= _TOO_LONG


def read(pid: int, beats: int, *, loading: bool, proc: Path = Path("/proc")) -> Reading:
    """Looks at a silent process. The kernel knows why it may be silent."""
    status: dict[str, str] = {}
    starved = 0.0  # where the kernel does not count it
    with suppress(OSError):  # it has ended
        lines = (proc / str(pid) / "status").read_text().splitlines()
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        with suppress(ValueError, IndexError):
            starved = int((proc / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    return Reading(
        beats, loading, status.get("State", "").startswith("T"), status.get("TracerPid", "0") != "0", starved
    )


def restart_delay(failed_starts: int) -> float:
    """Returns the seconds before a restart. Only processes that end before they have served make it grow."""
    return _BACKOFF[min(failed_starts, len(_BACKOFF) - 1)]


class Quarantine:
    """Pictures that end the process that decodes them, and inputs that end engines: for front ends that start later.

    One writer: the supervisor's loop.
    """

    def __init__(self) -> None:
        self._deadly: dict[bytes, messages.Deadly] = {}
        self._suspects: dict[bytes, float] = {}  # digest -> until when it is decoded apart
        self._guilty: dict[bytes, float] = {}  # digest -> until when it is refused
        self._apart_until = 0.0

    def add_deadly(self, deadly: messages.Deadly) -> None:
        """Records an input that has ended engines."""
        self._deadly[deadly.digest] = deadly

    def add_guilty(self, pictures: messages.Pictures) -> None:
        """Records a picture that has ended the process that decoded it alone."""
        self._guilty.update(pictures.guilty)

    def decoding(self, digests: Sequence[bytes], code: int, now: float) -> bool:
        """Records that a front end ended with this exit code while it decoded pictures. Returns whether it did."""
        for digest in digests:
            self._suspects[digest] = now + _APART
        if digests and -code in _CRASHES:
            self._apart_until = now + _APART
        return bool(digests)

    def pictures(self, now: float) -> messages.Pictures:
        """Returns what is known about pictures, the latest of each kind."""
        self._suspects, self._guilty = _latest(self._suspects, now), _latest(self._guilty, now)
        return messages.Pictures(tuple(self._suspects.items()), tuple(self._guilty.items()), self._apart_until)

    def deadly(self, now: float) -> tuple[messages.Deadly, ...]:
        """Returns the latest inputs that have ended engines."""
        until = _latest({digest: each.until for digest, each in self._deadly.items()}, now)
        self._deadly = {digest: self._deadly[digest] for digest in until}
        return tuple(self._deadly.values())


def _latest(known: Mapping[bytes, float], now: float) -> dict[bytes, float]:
    left = [(digest, until) for digest, until in known.items() if until > now]
    return dict(sorted(left, key=lambda each: each[1])[-_MOST_KEPT:])


class Offences:
    """Inputs that ended engines, by version. One writer: the supervisor's loop."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[str, int], dict[bytes, float]] = {}  # digest -> when it last ended an engine
        self._withdrawn: dict[tuple[str, int], float] = {}  # until when

    def add(self, model: str, version: int, digest: bytes, now: float) -> bool:
        """Records an input. Returns whether its version must stop serving: too many of its inputs end engines."""
        inputs = self._inputs.setdefault((model, version), {})
        inputs[digest] = now
        lately = {each: at for each, at in inputs.items() if at > now - _WITHIN}
        self._inputs[model, version] = lately
        if len(lately) < _OFFENCES:
            return False
        del self._inputs[model, version]
        self._withdrawn[model, version] = now + _WITHDRAWN
        return True

    def withdrawn(self, now: float) -> tuple[tuple[str, int], ...]:
        """Returns the versions that a new engine must not load at once."""
        self._withdrawn = {key: until for key, until in self._withdrawn.items() if until > now}
        return tuple(self._withdrawn)


class LoadDeaths:
    """Engine deaths in a row by the version that was loading. One writer: the supervisor's loop.

    A version that an engine has loaded before, with the same files, is seldom what ends the next one: where another
    process killed that one, or it ran a batch, the death counts for little. It counts at all because the kernel is such
    a process if memory runs out, and a busy engine may run batches all the time.
    """

    def __init__(self) -> None:
        self._deaths: Counter[Suspect] = Counter()  # in units of `_ELSEWHERE`
        self._survived: dict[Suspect, None] = {}  # oldest first

    def add(self, what: Suspect, *, elsewhere: bool) -> None:
        """Records a death. `elsewhere`: its cause may have been another process, or a batch of another version."""
        self._deaths[what] += 1 if elsewhere and what in self._survived else _ELSEWHERE

    def survived(self, what: Suspect) -> None:
        """Records that an engine has loaded a version, or has found an error in it."""
        self._deaths.pop(what, None)
        self._survived[what] = None
        if len(self._survived) > _MOST_SURVIVED:
            del self._survived[next(iter(self._survived))]

    def most(self) -> tuple[tuple[Suspect, int], ...]:
        """Returns the versions with most deaths, and their number: as many as a message can carry."""
        found = self._deaths.most_common(_MOST_SUSPECTS)
        return tuple((what, units // _ELSEWHERE) for what, units in found if units >= _ELSEWHERE)
