"""R2: engines that are killed under a saturating load.

Callers do not retry. The moment of a kill is one of `STAGES`, and random within it. Every second time the next kill
comes at once, while requests of the last one still wait.
"""

import contextlib
import itertools
import os
import signal
import tempfile
from pathlib import Path

import numpy as np

from convoy.service.client.aio import AsyncClient
from tests.reliability.crowd import Crowd, check, describe
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import (
    PATIENT,
    accepted,
    check_nothing_is_left,
    hit,
    moment,
    restarts,
    settings,
    standing,
    until,
)
from tests.service import networks
from tests.service.running import Server

STAGES = ("idle", "run", "answer", "load", "start")
_ROUNDS = 2  # of `networks.slow`: some tens of milliseconds
_RUN = 0.1  # seconds, within which a kill falls into a run or its answer
_LOAD = 0.3
_START = 1.0


def run(trials: int, seed: int, kind: str = "engine") -> Tally:
    """Kills so many processes of one server: the last of them while it drains."""
    random = np.random.default_rng(seed)
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        networks.save(networks.classifier(), root, "letters")
        networks.save(networks.slow(_ROUNDS), root, "slow")
        # The four ways to combine them, over either transport.
        devices = [[0], [0, 1]][seed // 4 % 2]
        several = [f"server.frontends={1 + seed // 2 % 2}", f"engine.devices={devices}"]
        with Server(root, [*settings(seed), *several, PATIENT, "server.log_level=debug"]) as server:
            _kill_all(server, trials, seed, random, count, kind, len(devices))
    return count.tally()


def _kill_all(
    server: Server, trials: int, seed: int, random: np.random.Generator, count: Count, kind: str, engines: int
) -> None:
    tiny = False  # whether all calls are short: then most of their time is that of answers, not of runs

    async def ask(client: AsyncClient, call: int) -> None:
        model = "slow" if call % 3 == 0 and not tiny else "letters"
        check(await client.classify(grey(call % DISTINCT), model), call % DISTINCT)

    versions = itertools.count(2)
    with Crowd(server.grpc, ask) as crowd:
        crowd.progress()
        for trial, stage in zip(range(trials - 1), itertools.cycle(STAGES), strict=False):
            where = f"kill {trial} of seed {seed}, stage {stage}"
            before = len(crowd.failed)
            tiny = stage == "answer"
            if stage == "idle":
                crowd.pause()
                crowd.settle()
            elif stage == "load":
                # Of the same network, so that its answers are known; the profile of one of them takes a while.
                version, seen = next(versions), len(server.log)
                model = networks.classifier() if version % 2 else networks.slow(_ROUNDS)
                networks.save(model, server.repository, "letters", version)
                server.wait_for_log(f"model letters version {version} is being loaded", after=seen)
                moment(random, _LOAD)
            elif stage == "start":
                hit(server, kind, random)
                moment(random, _START)
            else:
                moment(random, _RUN)
            hit(server, kind, random)
            crowd.resume()
            settled = trial % 2 == 1 or (crowd.settle() and crowd.progress())
            _judge(crowd, before, where, count, settled=settled)
        if not (crowd.settle() and crowd.progress()):
            count.also_bad(f"seed {seed}: calls were not answered after the last kill")
        crowd.pause()
        if not crowd.settle():
            count.also_bad(f"seed {seed}: calls were not answered")
        _compare(server, crowd, count, seed)
        _kill_at_the_end(server, crowd, seed, random, count, kind, engines)


def _kill_at_the_end(
    server: Server, crowd: Crowd, seed: int, random: np.random.Generator, count: Count, kind: str, engines: int
) -> None:
    """What has been accepted is answered, though the engine dies while the server drains. A front end, in the control,
    dies while each caller has a call."""
    before = len(crowd.failed)
    drains_first, met = kind == "engine" and random.random() < 0.5, True
    # The callers paused until now. A call that is still on its way later would find a server that has ended.
    with standing(server, engines):
        crowd.resume()
        if not accepted(server, crowd.callers):
            count.also_bad(f"seed {seed}: not every call reached the server before its end")
        crowd.pause()
        if drains_first:
            server.process.send_signal(signal.SIGTERM)
        else:
            hit(server, kind, random)
    moment(random, _RUN)
    if drains_first:
        met = _hit_while_it_drains(server, random)
    else:
        server.process.send_signal(signal.SIGTERM)
    settled = crowd.settle()
    _judge(crowd, before, f"last kill of seed {seed}, stage drain", count, settled=settled)
    if (code := server.process.wait(60)) != 0 and met:
        count.also_bad(f"seed {seed}: exit code {code} of a server whose {kind} died while it drained")


def _hit_while_it_drains(server: Server, random: np.random.Generator) -> bool:
    """Kills an engine of a server that drains, if there is one; returns whether a front end still had to end.

    If this process was paused meanwhile, all has been answered, and the kill meets an engine that ends anyway.
    """
    found = server.processes("engine")
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        if found:
            os.kill(int(random.choice(found)), signal.SIGKILL)
    return bool(found) and bool(server.processes("frontend"))


def _judge(crowd: Crowd, before: int, where: str, count: Count, *, settled: bool) -> None:
    errors = crowd.failed[before:]
    if errors:
        count.bad(f"{where}: {len(errors)} calls failed: {describe(errors)}")
    elif not settled:
        count.bad(f"{where}: {crowd.waiting} calls were not answered")
    else:
        count.good()


def _compare(server: Server, crowd: Crowd, count: Count, seed: int) -> None:
    """No image was answered twice, and nothing is left."""
    check_nothing_is_left(server, count, f"seed {seed}")
    # Not two looks: a call that began as the callers paused may end between them.
    if not crowd.failed and not until(lambda: server.total("convoy_images_total") == crowd.answered):
        images = server.total("convoy_images_total")
        count.also_bad(f"seed {seed}: the server counts {images:g} images, its callers {crowd.answered}")
    count.see("kills of one server", restarts(server, "engine"))


def control(seed: int) -> Tally:
    """Kills front ends, which callers that do not retry must see: at the last kill each of them has a call."""
    return run(3, 4 * seed, "frontend")


PROBE = Probe(
    "R2",
    "An engine that is killed under load, at any stage, costs no answer: callers that do not retry get each exactly "
    "once.",
    "kills of an engine",
    1000,
    40,
    run,
    control,
)
