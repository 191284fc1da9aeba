"""A server compared with a variant of it, in rounds of short turns."""

import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from tests.performance.figure import serving
from tests.performance.plain.swaps import environment
from tests.performance.trials import in_turns
from tests.service.running import Server

_TURNS = 20  # of a round

Servers = Callable[[str], AbstractContextManager[Server]]  # starts a variant
Trial = Callable[[Server], float]
Both = tuple[list[float], list[float]]  # with an optimisation, and without


def variants(root: Path, *settings: str) -> Servers:
    """Returns what starts a variant of the server on a repository."""
    return lambda variant: serving(root, *settings, environment=environment(variant))


def in_rounds(servers: Servers, variant: str, trial: Trial, rounds: int) -> Both:
    """Returns what a trial finds with an optimisation and without it, once a round: the mean of short turns.

    Each round starts both servers anew and puts their processes on the same cores. Where the kernel puts them decides
    a tenth of the CPU time, for as long as they live; with the cores fixed, rounds of equal servers differ by 2 %.
    """
    found: Both = ([], [])
    for number in range(rounds):
        order = ("", variant) if number % 2 == 0 else (variant, "")
        with ExitStack() as stack:
            started = [stack.enter_context(servers(each)) for each in order]
            real, plain = started if number % 2 == 0 else started[::-1]
            for server in started:
                settle(server)
            turns = in_turns(partial(trial, real), partial(trial, plain), _TURNS)
        for means, values in zip(found, turns, strict=True):
            means.append(statistics.fmean(values))
    return found


def settle(server: Server) -> None:
    """Keeps the front end on one core and the engine on another, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    for kind, core in (("frontend", cores[0]), ("engine", cores[-1])):
        for pid in server.processes(kind):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})
