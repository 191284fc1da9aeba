"""Routing among several engines: chooses one for each request, and merges their tables of versions. Plain code.

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

from convoy.service.repository import Table, Version

Served = tuple[str, int]  # a model and its version

_GUESS = 1e-7  # seconds per byte of input before any engine has answered: the same for all, so only bytes count
_WEIGHT = 0.1  # of the newest batch in the moving average
_MOST = 2.0  # times the average is the most that one batch counts: a stall must not divert requests for long
_TRIAL = 128  # one in this many requests goes to an idle engine, which may have become faster unnoticed


class Load:
    """One engine's work, as far as a front end knows it. One writer: the front end's loop."""

    def __init__(self) -> None:
        self.requests = 0  # unanswered
        self.chosen = 0  # the turn of the last choice
        self.paces: dict[Served, float] = {}  # seconds per byte of input
        self._bytes: dict[Served, int] = {}  # of unanswered inputs
        self._learned = 0  # start of the last recorded batch, ns

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

    def learn(self, served: Served, began: int, ended: int, nbytes: int) -> None:
        """Records, once per batch, that `nbytes` bytes of input ran between these times (ns)."""
        if began == self._learned:
            return
        self._learned = began
        pace = (ended - began) / 1e9 / max(1, nbytes)
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
    found: dict[tuple[str, int], dict[int, Version]] = {}
    for device, table in tables.items():
        for row in table.versions:
            found.setdefault((row.model, row.version), {})[device] = row
    order = sorted(found, key=lambda key: (key[0], -key[1]))
    complete = bool(tables) and all(table.complete for table in tables.values())
    problem = "" if any(not table.problem for table in tables.values()) else next(iter(tables.values())).problem
    return Table(tuple(_row(found[key]) for key in order), complete, problem)


def _row(rows: Mapping[int, Version]) -> Version:
    for state in ("READY", "LOADING", "UNAVAILABLE"):
        having = [row for row in rows.values() if row.state == state]
        if having:
            break
    reasons = {row.reason for row in rows.values()}
    if len(reasons) == 1 and state != "READY":
        return having[0]
    return msgspec.structs.replace(having[0], reason="; ".join(_reasons(having[0], rows)))


def _reasons(shown: Version, rows: Mapping[int, Version]) -> Iterator[str]:
    for device, row in rows.items():
        if row.state == "UNAVAILABLE" and row.reason:
            yield f"device {device}: {row.reason}"
        elif row.state == "READY" and row.provider != shown.provider:
            yield f"device {device}: runs on {row.provider}"
