"""R16: what the server has counted, beside what its callers have counted, though processes are killed meanwhile.

A caller whose connection breaks knows nothing of its call: it may have been counted or not. So for each status the
server counts at least the calls that callers know of, and at most as many more as broke off. While only engines are
killed, none breaks off, and both are equal. Counts of batches are the engine's own. They are not compared, as a killed
one may have run a batch that the next one runs again.
"""

import signal
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from convoy.service.client.aio import AsyncClient
from convoy.service.client.results import Classification, ServerError
from tests.reliability.crowd import Crowd, check
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import check_nothing_is_left, hit, moment, settings, until
from tests.service import networks
from tests.service.running import Server

_CODES = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
_CALLERS = 12
_WORK = 0.3  # seconds before a kill, at most
_SECONDS = 5.0  # until counters show what has ended
_IMAGES = "images"
_BROKEN = "broken off"


class _Counting:
    """Callers that ask for good and bad things, and count what they get."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong = 0

    async def ask(self, client: AsyncClient, call: int) -> None:
        images: list[bytes | np.ndarray] = [grey((call + turn) % DISTINCT) for turn in range(1 + call % 3)]
        model, spoilt = "letters", call % 5 == 0
        if spoilt:
            images[0] = b"none"
        elif call % 7 == 0:
            model = "nobody"
        try:
            answers = await client.classify_many(images, model)
            if len(images) == 1:
                answers = [self._single(answers[0])]
        except ServerError as error:
            code = "UNKNOWN" if error.code is None else error.code.name
            self.counts[_BROKEN if code == "UNAVAILABLE" else code] += 1
            return
        self.counts["OK"] += 1
        for turn, answer in enumerate(answers):
            if isinstance(answer, Classification):
                self.counts[_IMAGES] += 1
                check(answer, (call + turn) % DISTINCT)

    def _single(self, answer: Classification | ServerError) -> Classification:
        if isinstance(answer, ServerError):
            raise answer
        return answer


def run(trials: int, seed: int, *, unknown: int = 0) -> Tally:
    """Compares so many times, each time after a kill: of a front end every third time, else of an engine.

    unknown  calls that the callers forget each time
    """
    random = np.random.default_rng(seed)
    count = Count()
    counting = _Counting()
    with tempfile.TemporaryDirectory() as folder:
        networks.save(networks.classifier(), Path(folder), "letters")
        with Server(Path(folder), [*settings(seed), f"server.frontends={1 + seed // 2 % 2}"]) as server:
            with Crowd(server.grpc, counting.ask, callers=_CALLERS) as crowd:
                crowd.progress()
                before = _pause_and_count(server, crowd, counting, None)
                for trial in range(trials):
                    kind = "frontend" if trial % 3 == 2 else "engine"
                    crowd.resume()
                    moment(random, _WORK)
                    hit(server, kind, random, signal.SIGKILL)
                    # Until every caller has a connection again, whichever process it was.
                    answered = counting.counts["OK"]
                    until(partial(_has_answered, counting, answered + 2 * _CALLERS))
                    counting.counts["OK"] -= unknown
                    after = _pause_and_count(server, crowd, counting, before)
                    where = f"kill {trial} of seed {seed}, {kind}"
                    if found := [*_differences(before, after), *(str(error) for error in crowd.failed)]:
                        count.bad(f"{where}: {'; '.join(found)}")
                    elif kind == "engine" and after[0][_BROKEN] != before[0][_BROKEN]:
                        count.bad(f"{where}: calls broke off, though only an engine was killed")
                    else:
                        count.good()
                    crowd.failed.clear()
                    before = after
                crowd.resume()
            check_nothing_is_left(server, count, f"seed {seed}")
    return count.tally()


def _has_answered(counting: _Counting, calls: int) -> bool:
    return counting.counts["OK"] >= calls


Counts = tuple[Counter[str], Counter[str]]  # of the callers and of the server


def _pause_and_count(server: Server, crowd: Crowd, counting: _Counting, before: Counts | None) -> Counts:
    """The counts while nobody calls."""
    crowd.pause()
    crowd.settle()
    server.wait_for_total("convoy_requests_in_flight", 0)
    result: list[Counts] = []

    def agree() -> bool:
        result.append((counting.counts.copy(), _counted(server)))
        return not _differences(before or (Counter(), Counter()), result[-1])

    until(agree, _SECONDS)
    return result[-1]


def _counted(server: Server) -> Counter[str]:
    samples = server.samples()
    found: Counter[str] = Counter()
    for (name, labels), value in samples.items():
        of = dict(labels)
        if name == "convoy_request_duration_seconds_count" and of["method"] == "Classify":
            found[of["code"]] += int(value)
        if name == "convoy_images_total":
            found[_IMAGES] += int(value)
    return found


def _differences(before: Counts, after: Counts) -> list[str]:
    """What cannot be, of what was counted in between."""
    ours, theirs = (
        {key: after[side][key] - before[side][key] for key in (*_CODES, _IMAGES, _BROKEN)} for side in (0, 1)
    )
    broken = ours[_BROKEN]
    # A call has at most three images.
    most = {code: ours[code] + broken for code in _CODES} | {_IMAGES: ours[_IMAGES] + 3 * broken}
    return [
        f"the server counts {theirs[key]} {key}, its callers {ours[key]}"
        + (f", and {broken} calls that broke off" if broken else "")
        for key in most
        if not ours[key] <= theirs[key] <= most[key]
    ]


def control(seed: int) -> Tally:
    """Callers that forget one call each time."""
    return run(1, seed, unknown=1)


PROBE = Probe(
    "R16",
    "Requests by status and images are counted exactly, over all processes and those that were killed.",
    "comparisons after a kill",
    300,
    24,
    run,
    control,
)
