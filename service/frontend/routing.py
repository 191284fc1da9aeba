"""Several engines: which of them a request goes to, and one table of versions out of theirs. Plain code.

A request goes to the engine that should be done with it first. What an engine has to do is what this front end has
sent there and has no answer to, by what such requests took lately. The request's own run counts too, or a slow device
that is idle would look as good as a fast one. Of equal engines the one with the fewest requests is chosen, then the one
whose last turn is longest ago.

What other front ends have sent there is not known: each shares out its own. An engine's word of it comes with answers,
and so is as old as a batch takes; whoever goes by it goes where all others went meanwhile, and waits longer.

So when a request is placed, no other engine has less to do by more than that request takes there: engines run empty
within the time of one request of each other, and with equal devices all work ends at most (2 - 1/engines) times as late
as in the best order (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969). Both hold as far as the predicted
times do, for the requests of one front end.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from convoy.service.repository import Table, Version

Served = tuple[str, int]  # a model and its version

_GUESS = 1e-7  # seconds for a byte of input, where no engine has answered yet: the same for all, so only bytes compare
_WEIGHT = 0.1  # of the newest batch in the moving average
_MOST = 2.0  # times the average is what one batch counts for: a stall must not send all away for long
_TRIAL = 128  # requests, of which one goes to an engine that has none: an idle engine may have become faster unseen


class Load:
    """What a front end knows of one engine's work. One writer: the front end's loop."""

    def __init__(self) -> None:
        self.requests = 0  # without an answer
        self.chosen = 0  # the turn when it was chosen last
        self.paces: dict[Served, float] = {}  # seconds for a byte of input
        self._bytes: dict[Served, int] = {}  # of inputs without an answer
        self._learned = 0  # when the batch began that taught last, ns

    def add(self, served: Served, nbytes: int) -> None:
        """A request with so many bytes of input goes there."""
        self.requests += 1
        self._bytes[served] = self._bytes.get(served, 0) + nbytes

    def end(self, served: Served, nbytes: int) -> None:
        """It has ended, one way or another."""
        self.requests -= 1
        self._bytes[served] -= nbytes
        if not self._bytes[served]:
            del self._bytes[served]

    def learn(self, served: Served, began: int, ended: int, nbytes: int) -> None:
        """A batch with so many bytes of input ran between these times (ns). Its other requests tell the same."""
        if began == self._learned:
            return
        self._learned = began
        pace = (ended - began) / 1e9 / max(1, nbytes)
        known = self.paces.get(served, pace)
        self.paces[served] = known + _WEIGHT * (min(pace, _MOST * known) - known)

    def forget(self) -> None:
        """The engine has died, and its work with it. The next one runs on the same device."""
        self.requests = 0
        self._bytes.clear()

    def seconds(self, served: Served, nbytes: int, guess: float) -> float:
        """Until a request of so many bytes would have run; `guess` is the pace where this engine's is not known."""
        known = self.paces.get
        waiting = [nbytes * known(each, guess if each == served else _GUESS) for each, nbytes in self._bytes.items()]
        return sum(waiting) + nbytes * known(served, guess)


def choose(loads: Sequence[Load], served: Served, nbytes: int, turn: int) -> Load:
    """Where a request with so many bytes of input should go; `turn` counts the choices."""
    idle = [load for load in loads if not load.requests] if turn % _TRIAL == 0 else []
    if idle:
        chosen = min(idle, key=lambda load: load.chosen)
    else:
        # Whoever has not run it yet is taken to be as fast as the fastest.
        guess = min((load.paces[served] for load in loads if served in load.paces), default=_GUESS)
        chosen = min(loads, key=lambda load: (load.seconds(served, nbytes, guess), load.requests, load.chosen))
    chosen.chosen = turn
    return chosen


def merged(tables: Mapping[int, Table]) -> Table:
    """What the engines have together, by device: a version serves where one of them does, and loads until then.

    Why it does not serve on every device is said in its row's `reason`. The first look is complete when all are.
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
