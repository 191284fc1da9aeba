"""R5: versions that replace each other while callers use all that the server can give.

The weights of each version differ, so an answer shows which of them ran, and the response names it. Requests have one
image or several: a batch of two versions would show in either. Newer versions come, and the newest are removed again.
"""

import shutil
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np

from convoy.service.client.aio import AsyncClient
from convoy.service.client.results import ServerError
from tests.reliability.crowd import Crowd, check, describe
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import check_nothing_is_left, moment, settings, until
from tests.service import networks
from tests.service.running import Server

_IMAGES = 5  # of every third request
_GAP = 0.3  # seconds
_CALLERS = 16
_MODEL = "letters"


class _Versions:
    """The versions in a repository, and those that have answered most recently."""

    def __init__(self, root: Path, shift: int) -> None:
        self._root = root
        self._shift = shift
        self.present: list[int] = []
        self.answered: deque[int] = deque(maxlen=2 * _CALLERS)

    def add(self) -> int:
        """Adds the next one, and forgets all but the last few."""
        version = self.present[-1] + 1 if self.present else 1
        self.present.append(version)
        networks.save(networks.classifier(shift=version), self._root, _MODEL, version)
        if len(self.present) > 4:
            shutil.rmtree(self._root / _MODEL / str(self.present.pop(0)))
        return version

    def take_back(self) -> int:
        """Removes the newest; the one before it."""
        shutil.rmtree(self._root / _MODEL / str(self.present.pop()))
        return self.present[-1]

    async def ask(self, client: AsyncClient, call: int) -> None:
        count = _IMAGES if call % 3 == 0 else 1
        images = [(call + turn) % DISTINCT for turn in range(count)]
        answers = await client.classify_many([grey(image) for image in images], _MODEL)
        for image, answer in zip(images, answers, strict=True):
            if isinstance(answer, ServerError):
                raise answer
            check(answer, image, answer.version + self._shift)
        versions = {answer.version for answer in answers if not isinstance(answer, ServerError)}
        assert len(versions) == 1, f"one request was answered by versions {versions}"
        self.answered.append(versions.pop())

    def serves(self, version: int) -> bool:
        """Whether it has given all recent answers."""
        return len(self.answered) == self.answered.maxlen and set(self.answered.copy()) == {version}


def run(trials: int, seed: int, *, shift: int = 0) -> Tally:
    """Swaps so many versions of one model. With every second pair of seeds each first runs in a process of its own."""
    random = np.random.default_rng(seed)
    count = Count()
    tried = f"repository.trial_seconds={60 * (seed // 2 % 2)}"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        versions = _Versions(Path(folder), shift)
        versions.add()
        options = [*settings(seed), tried, f"repository.cache={cache}", f"server.frontends={1 + seed // 4 % 2}"]
        with Server(Path(folder), options) as server:
            with Crowd(server.grpc, versions.ask, callers=_CALLERS) as crowd:
                crowd.progress(2 * _CALLERS)
                swaps: list[tuple[float, float]] = []
                for trial in range(trials):
                    moment(random, _GAP)
                    before = len(crowd.failed)
                    began = time.monotonic()
                    back = len(versions.present) > 1 and random.random() < 0.3
                    wanted = versions.take_back() if back else versions.add()
                    swapped = until(partial(_has_ended, versions, wanted, crowd, before), 60)
                    swaps.append((began, time.monotonic()))
                    where = f"swap {trial} of seed {seed}, {'back ' * back}to version {wanted}"
                    if errors := crowd.failed[before:]:
                        count.bad(f"{where}: {len(errors)} calls failed: {describe(errors)}")
                    elif not swapped:
                        count.bad(f"{where}: answers are of versions {set(versions.answered)}")
                    else:
                        count.good()
            _see_latencies(crowd, swaps, count)
            check_nothing_is_left(server, count, f"seed {seed}")
    return count.tally()


def _has_ended(versions: _Versions, wanted: int, crowd: Crowd, before: int) -> bool:
    return versions.serves(wanted) or len(crowd.failed) > before


def _see_latencies(crowd: Crowd, swaps: list[tuple[float, float]], count: Count) -> None:
    ends, seconds = np.array(crowd.ends), np.array(crowd.seconds)
    during = np.zeros(len(ends), bool)
    for begin, end in swaps:
        during |= (begin <= ends) & (ends <= end)
    if during.any() and not during.all():
        count.see(
            "p99 during / steady", float(np.quantile(seconds[during], 0.99) / np.quantile(seconds[~during], 0.99))
        )


def control(seed: int) -> Tally:
    """Callers that expect the weights of the version after the one that is named."""
    return run(1, seed, shift=1)


PROBE = Probe(
    "R5",
    "A version that replaces another under load fails no call, and each answer is of the version that it names.",
    "swaps",
    300,
    30,
    run,
    control,
)
