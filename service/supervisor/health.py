"""Decides which processes hang, when one that ended starts again, and which version must stop serving.

Plain code: readings in, decisions out. The supervisor's loop reads and acts.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_BACKOFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before a restart, by the number of failed starts in succession
_STARTING = 60.0  # seconds until the first beat: imports from a cold disk
# While a version loads: some versions of onnxruntime hold the GIL as long as they build a session.
_LOADING = 60.0
_OFFENCES = 3  # different inputs that end engines,
_WITHIN = 60.0  # within so many seconds, end the service of their version
_WITHDRAWN = 600.0  # seconds for which new engines do not load it


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
