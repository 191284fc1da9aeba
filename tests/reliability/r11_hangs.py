"""R11: processes that hang while callers use all that the server can give.

An engine or a front end is stopped by a signal at a random moment; a run never ends; a file is tried that never ends,
or the process that tries it is stopped. Each is found and replaced, and whoever waits is answered before the deadline.
"""

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests import processes
from tests.reliability.crowd import Crowd, asking, describe
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.r10_poison import QUICK_TO_FIND
from tests.reliability.servers import check_nothing_is_left, hit, moment, settings, until
from tests.service import networks
from tests.service.running import Server

KINDS = ("engine", "frontend", "run", "loader")
_DEADLINE = 30.0  # seconds of each call
_TRIAL = 2.0  # of a file
# After which each counts as hung: what the settings say, and for a stopped process of trials what file_trials adds.
_LIMITS = {"engine": 1.0, "frontend": 1.0, "run": 1.0, "loader": _TRIAL + 5.0}
_LATE = 10.0  # what a busy machine adds
_FATAL = np.full((8, 8), 250, np.uint8)
_GAP = 0.2


def run(trials: int, seed: int, *, heartbeat: float = 1.0, late: float = _LATE) -> Tally:
    """Lets so many processes hang, of each kind in turn."""
    random = np.random.default_rng(seed)
    count = Count()
    options = [
        *settings(seed),
        *QUICK_TO_FIND,
        f"server.heartbeat_seconds={heartbeat}",
        f"repository.trial_seconds={_TRIAL}",
        "server.frontends=2",
    ]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        root = Path(folder)
        networks.save(networks.classifier(), root, "letters")
        for trial in range(trials):
            if KINDS[trial % len(KINDS)] == "run":
                networks.save(networks.fatal("hangs"), root, f"hangs-{trial}")
        with Server(root, [*options, f"repository.cache={cache}"]) as server:
            with Crowd(server.grpc, asking(deadline=_DEADLINE), retry=True) as crowd:
                crowd.progress()
                for trial in range(trials):
                    kind = KINDS[trial % len(KINDS)]
                    where = f"hang {trial} of seed {seed}, {kind}"
                    before = len(crowd.failed)
                    moment(random, _GAP)
                    seen, began = len(server.log), time.monotonic()
                    found = _hang(server, kind, trial, random)
                    if not until(lambda seen=seen, found=found: _said(server, found, seen), _LIMITS[kind] + late):  # type: ignore[misc]
                        count.bad(f"{where}: it was not found within {_LIMITS[kind] + late:g} s")
                        for pid in server.processes(kind):
                            os.kill(pid, signal.SIGCONT)  # otherwise callers wait for their deadlines
                        break
                    count.see(f"seconds until found, {kind}", time.monotonic() - began)
                    settled = crowd.settle() and crowd.progress()
                    ready = until(lambda: server.get(f"{server.http}/readyz")[0] == 200)
                    if errors := crowd.failed[before:]:
                        count.bad(f"{where}: {len(errors)} calls failed: {describe(errors)}")
                    elif not (settled and ready):
                        count.bad(f"{where}: {'' if settled else 'calls were not answered; '}ready: {ready}")
                    else:
                        count.good()
            if not count.tally().failed:
                check_nothing_is_left(server, count, f"seed {seed}")
    return count.tally()


def _hang(server: Server, kind: str, trial: int, random: np.random.Generator) -> str:
    """Lets something hang; what the log says when that is found."""
    if kind in {"engine", "frontend"}:
        return f"{kind} {hit(server, kind, random, signal.SIGSTOP)} hangs: "
    if kind == "run":
        with Client(server.grpc) as client, contextlib.suppress(ServerError):
            client.classify(_FATAL, f"hangs-{trial}", deadline=_DEADLINE)
        return f"a run of model hangs-{trial} version 1 hangs: "
    networks.save(networks.endless(), server.repository, f"endless-{trial}")
    if random.random() < 0.5:
        moment(random, _TRIAL)
        _stop_one_that_tries_files(server, random)
    return f"model endless-{trial} version 1 is not served: "


def _stop_one_that_tries_files(server: Server, random: np.random.Generator) -> None:
    """Stops the process below the engine that starts trials, or a trial below that."""
    candidates = processes.below(server.children()["engine"])
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(int(random.choice(candidates)), signal.SIGSTOP)


def _said(server: Server, message: str, seen: int) -> bool:
    return any(record["message"].startswith(message) for record in server.log[seen:])


def control(seed: int) -> Tally:
    """Stops an engine where nobody looks for a heartbeat."""
    return run(1, seed, heartbeat=0, late=2.0)


PROBE = Probe(
    "R11",
    "A process, a run or a file that hangs is found in time and replaced, and costs no call its answer.",
    "hangs",
    200,
    12,
    run,
    control,
)
