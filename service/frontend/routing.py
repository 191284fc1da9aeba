"""The engines as a front end knows them: chooses one for each request, and merges their tables of versions.

A request goes to the engine that should finish it first. An engine's pending work is what this front end has sent there
without an answer yet, estimated from the recent times of such requests. The request's own run counts too; otherwise a
slow idle device would look as good as a fast one. Among equal engines the one with the fewest requests is chosen, then
the one that was chosen least recently.

The work from other front ends is unknown: each front end balances its own requests. An engine could report its load
only with answers, so one batch late. Front ends that used the report would all choose the same engine, and wait longer.

So when a request is placed, the pending work of no other engine is smaller by more than the request's time there.
Engines run empty within the time of one request of each other. With equal devices all work ends at most (2 - 1/engines)
times as late as in the best order (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969). Both are only as
accurate as the predicted times, and apply to the requests of one front end.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from convoy.service.ipc.channel import Answer, Record, Request, Wire
from convoy.service.repository import State, Table, Version

Served = tuple[str, int]  # a model and its version

_GUESS = 1e-7  # seconds per byte of input before any engine has answered: the same for all, so only bytes count
_WEIGHT = 0.1  # of the newest batch in the moving average
_MOST = 2.0  # times the average is the most that one batch counts: a stall must not divert requests for long
_STATES: tuple[State, ...] = ("READY", "LOADING", "UNAVAILABLE")  # of one version, the best first
_TRIAL = 128  # one in this many requests goes to an idle engine, which may have become faster unnoticed


class Load:
    """One engine's work, as far as a front end knows it. One writer: the front end's loop."""

    def __init__(self) -> None:
        self.requests = 0  # unanswered
        self.chosen = 0  # the turn of the last choice
        self.paces: dict[Served, float] = {}  # seconds per byte of input
        self._bytes: dict[Served, int] = {}  # of unanswered inputs
        self._learned = -1.0  # start of the last recorded batch

    def add(self, served: Served, nbytes: int) -> None:
        """Adds a request with `nbytes` bytes of input."""
        self.requests += 1
        self._bytes[served] = self._bytes.get(served, 0) + nbytes

    def end(self, served: Served, nbytes: int) -> None:
        """Removes a request that has ended, whatever its outcome."""
        self.requests -= 1
        self._bytes[served] -= nbytes
        if not self._bytes[served]:
            del self._bytes[served]

    def learn(self, served: Served, began: float, ended: float, nbytes: int) -> None:
        """Records, once per batch, that `nbytes` bytes of input ran between these times."""
        if began == self._learned:
            return
        self._learned = began
        pace = (ended - began) / max(1, nbytes)
        known = self.paces.get(served, pace)
        self.paces[served] = known + _WEIGHT * (min(pace, _MOST * known) - known)

    def forget(self) -> None:
        """Clears the work of an engine that died. The paces stay: the next engine runs on the same device."""
        self.requests = 0
        self._bytes.clear()

    def seconds(self, served: Served, nbytes: int, guess: float) -> float:
        """Returns the seconds until a request of `nbytes` would have run. `guess` replaces an unknown pace."""
        known = self.paces.get
        waiting = [nbytes * known(each, guess if each == served else _GUESS) for each, nbytes in self._bytes.items()]
        return sum(waiting) + nbytes * known(served, guess)


class Engine:
    """This front end's side of a device's engine. One writer: the front end's loop."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.wire: Wire | None = None
        self.runnable: set[Served] = set()  # versions of the current process, including retired ones
        self.load = Load()  # maintained only with several engines
        self.complete = False  # the current process has scanned the whole repository
        self.lost = False  # a process died, and none has been complete since
        # Of the current process, or of the previous one while the current one loads. None: not restarted, others serve.
        self.table: Table | None = Table()

    def send(self, records: Sequence[Record]) -> None:
        """Sends records to the current process, if it is connected."""
        if self.wire is not None and records:
            self.wire.send(records)

    def update(self, table: Table) -> None:
        """Accepts a new table of the current process."""
        self.runnable |= {(row.model, row.version) for row in table.versions if row.state == "READY"}
        self.complete = table.complete
        if table.complete or table.problem or (self.table is not None and not self.table.complete):
            self.table = table
        if table.complete:
            self.lost = False

    def lose(self) -> None:
        """Records that the process has died."""
        self.wire = None
        self.runnable = set()
        self.load.forget()
        self.complete = False
        self.lost = True


class Engines:
    """All engines, one per device. One writer: the front end's loop."""

    def __init__(self, devices: Sequence[int]) -> None:
        self.by_device = {device: Engine(device) for device in devices}
        self._only = self.by_device[devices[0]] if len(devices) == 1 else None  # then no choice is needed
        self._turns = 0  # choices

    @property
    def connected(self) -> bool:
        """Whether any engine is connected."""
        return any(engine.wire is not None for engine in self.by_device.values())

    @property
    def lost(self) -> list[int]:
        """Devices whose engine died, and where no new engine has loaded the whole repository yet."""
        return [engine.device for engine in self.by_device.values() if engine.lost]

    @property
    def settled(self) -> bool:
        """Whether no engine is still loading, so that no further version is expected."""
        return all(engine.complete for engine in self.by_device.values() if engine.table is not None)

    def table(self) -> Table:
        """Returns the combined table."""
        return merged({each.device: each.table for each in self.by_device.values() if each.table is not None})

    def drop_lost(self) -> bool:
        """Drops the versions that only a lost engine had, if others serve. Returns whether it did."""
        if not self.lost or not any(engine.complete for engine in self.by_device.values()):
            return False
        for engine in self.by_device.values():
            engine.table = None if engine.lost else engine.table
        return True

    def choose(self, request: Request, nbytes: int) -> Engine | None:
        """Returns an engine for a request with `nbytes` bytes of input; None if none has its version."""
        served = request.model, request.version
        if self._only is not None:
            return self._only if served in self._only.runnable else None
        able = {engine.load: engine for engine in self.by_device.values() if served in engine.runnable}
        if not able:
            return None
        self._turns += 1
        chosen = choose(list(able), served, nbytes, self._turns)
        chosen.add(served, nbytes)
        return able[chosen]

    def learn(self, engine: Engine, request: Request, nbytes: int, answer: Answer) -> None:
        """Records how long a batch took, from the answer to one of its requests, which has `nbytes` bytes of input."""
        if self._only is None:
            batch_bytes = nbytes * answer.batch_size // request.rows
            engine.load.learn((request.model, request.version), answer.times.gather, answer.times.done, batch_bytes)

    def end(self, engine: Engine | None, request: Request, nbytes: int) -> None:
        """Records that a request has ended, whatever its outcome."""
        if self._only is None and engine is not None:
            engine.load.end((request.model, request.version), nbytes)


def choose(loads: Sequence[Load], served: Served, nbytes: int, turn: int) -> Load:
    """Returns the engine for a request with `nbytes` bytes of input; `turn` counts the choices."""
    idle = [load for load in loads if not load.requests] if turn % _TRIAL == 0 else []
    if idle:
        chosen = min(idle, key=lambda load: load.chosen)
    else:
        # An engine that has not run this version yet counts as fast as the fastest.
        guess = min((load.paces[served] for load in loads if served in load.paces), default=_GUESS)
        chosen = min(loads, key=lambda load: (load.seconds(served, nbytes, guess), load.requests, load.chosen))
    chosen.chosen = turn
    return chosen


def merged(tables: Mapping[int, Table]) -> Table:
    """Returns the combined table of the engines, given by device. A version serves if any engine serves it, and loads
    until then.

    Its row's `reason` contains why it does not serve on every device. The first scan is complete when all are.
    """
    if len(tables) == 1:
        return next(iter(tables.values()))
    rows_of: dict[tuple[str, int], dict[int, Version]] = {}
    for device, table in tables.items():
        for row in table.versions:
            rows_of.setdefault((row.model, row.version), {})[device] = row
    order = sorted(rows_of, key=lambda key: (key[0], -key[1]))
    complete = bool(tables) and all(table.complete for table in tables.values())
    problem = "" if any(not table.problem for table in tables.values()) else next(iter(tables.values())).problem
    return Table(tuple(_row(rows_of[key]) for key in order), complete, problem)


def _row(rows: Mapping[int, Version]) -> Version:
    shown = min(rows.values(), key=lambda row: _STATES.index(row.state))
    reasons = {row.reason for row in rows.values()}
    if len(reasons) == 1 and shown.state != "READY":
        return shown
    return msgspec.structs.replace(shown, reason="; ".join(_reasons(shown, rows)))


def _reasons(shown: Version, rows: Mapping[int, Version]) -> Iterator[str]:
    for device, row in rows.items():
        if row.state == "UNAVAILABLE" and row.reason:
            yield f"device {device}: {row.reason}"
        elif row.state == "READY" and row.provider != shown.provider:
            yield f"device {device}: runs on {row.provider}"
