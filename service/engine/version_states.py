"""The state of each version of a model, why it is so, and the rows that front ends receive of it."""

import logging
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from convoy.service import repository
from convoy.service.config import EngineConfig
from convoy.service.engine.profiles import Profile
from convoy.service.engine.providers import CPU, gpu_offered
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.session import WRONG_EXAMPLE, Session
from convoy.service.engine.session_builder import Loaded
from convoy.service.errors import listed
from convoy.service.metrics import EXAMPLE_FAILURES, MODEL_FALLBACK, MODEL_NODES, MODEL_OBJECTIVE, MODEL_READY
from convoy.service.repository import Listing, Stamp, State, Table, Version

log = logging.getLogger(__name__)

_QUIET = 30.0  # seconds between log entries on one version: a slow copy fails with each part that arrives
_RETRY, _LAST_RETRY = 60.0, 600.0  # seconds before a retry: the first one, and at most
_MOST_OF_A_REASON = 300  # characters; a file may choose the text
_NAMED = 8  # versions in a reason
_UNLOADED = "unloaded on request"

_Key = tuple[int, Stamp]  # a version, and the state of its files


class _Retry(NamedTuple):
    """The time of the next retry, on the loader's clock, and the wait before it, in seconds."""

    at: float
    wait: float


@dataclass(slots=True)
class Failures:
    """Load failures of one model. One writer: the loader's thread."""

    reasons: dict[_Key, str] = field(default_factory=dict)
    _retries: dict[_Key, _Retry] = field(default_factory=dict)  # of failed versions, until their files change

    @property
    def final(self) -> set[int]:
        """Versions that are not retried unless their files change."""
        return {version for version, stamp in self.reasons if self._retries[version, stamp].at == math.inf}

    def add(self, version: int, stamp: Stamp, reason: str, now: float, *, final: bool = False) -> None:
        """Records a load failure. The version is retried when its files change, or unless `final` after a growing
        wait."""
        before = self._retries.get((version, stamp))
        wait = _RETRY if before is None else min(2 * before.wait, _LAST_RETRY)
        wait = math.inf if final else wait
        self.reasons[version, stamp] = cut(reason)
        self._retries[version, stamp] = _Retry(now + wait, wait)

    def forgive(self, present: Collection[_Key], now: float) -> None:
        """Removes failures whose files are gone or have changed, and those that are due for a retry."""
        self._retries = {key: retry for key, retry in self._retries.items() if key in present}
        self.reasons = {
            key: reason for key, reason in self.reasons.items() if key in present and now < self._retries[key].at
        }


@dataclass(slots=True)
class ModelState:
    """What the loader knows of a model. One writer: its thread."""

    listing: Listing = field(default_factory=Listing)
    problem: str = ""  # of the folder, at the last scan
    serving: set[int] = field(default_factory=set)
    coming: set[int] = field(default_factory=set)  # versions that are being tried or loaded, or wait for that
    failures: Failures = field(default_factory=Failures)
    unloaded: bool = False  # on request


class Reporter:
    """Publishes the table when it has changed, and logs why versions do not serve. One writer: the loader's thread."""

    def __init__(self, publish: Callable[[Table], None], clock: Callable[[], float]) -> None:
        self._publish = publish
        self._clock = clock
        self._published: Table | None = None
        self._logged: dict[tuple[str, int], float] = {}  # time of the last log entry that a version is not served

    def report(self, table: Table) -> None:
        if table == self._published:
            return
        known = {(row.model, row.version): row for row in self._published.versions} if self._published else {}
        self._published = table
        self._publish(table)  # before it is said: who reads that looks it up
        for row in table.versions:
            if row.state == "UNAVAILABLE" and row != known.get((row.model, row.version)):
                level = logging.DEBUG if is_expected(row) or self._logged_lately(row) else logging.ERROR
                which = f"model {row.model} version {row.version}" if row.version else f"model {row.model}"
                log.log(level, "%s is not served: %s", which, row.reason)

    def report_problem(self, problem: str) -> None:
        self._published = None
        self._publish(Table(problem=problem))

    def _logged_lately(self, row: Version) -> bool:
        now, key = self._clock(), (row.model, row.version)
        if now < self._logged.get(key, -math.inf) + _QUIET:
            return True
        self._logged[key] = now
        return False


def is_expected(row: Version) -> bool:
    """Returns whether a version that does not serve is not meant to, because others do or on request."""
    return row.reason.startswith(("version", _UNLOADED))


def _row_seconds(profile: Profile) -> float:
    """Returns the seconds of one row in the most efficient batch."""
    size = profile.batch_size
    return RunTimes(max(profile.batches), profile.seconds).predict(size) / size


def versions_of(model: ModelState) -> list[int]:
    """Returns the versions in descending order; 0 stands for those of a folder that cannot be read or has none."""
    # A version whose files are gone serves until others have taken its place.
    found = sorted({*model.listing.files, *model.listing.missing, *model.serving}, reverse=True)
    return found or ([0] if model.listing.problem or model.listing.empty else [])


def row_of(name: str, model: ModelState, version: int, loaded: Loaded | None) -> Version:
    """Returns a version's row of the table."""
    state, reason = state_of(model, version)
    if state != "READY" or loaded is None:
        return Version(model=name, version=version, state=state, reason=cut(reason))
    session = loaded.session
    return Version(
        model=name,
        version=version,
        state=state,
        reason=cut("; ".join(limitations(session))),
        provider=session.provider,
        document=session.document,
        inputs=session.inputs,
        outputs=session.outputs,
        defaults=session.defaults,
        batched=session.batched,
        max_batch_size=loaded.limits.max_batch_size,
        batch_size=min((profile.batch_size for profile in loaded.profiles), default=1),
        row_seconds=max([_row_seconds(profile) for profile in loaded.profiles], default=None),
        max_queue_delay_ms=loaded.limits.max_queue_delay * 1000,
        latency_objective=loaded.limits.objective,
        buckets=loaded.buckets,
    )


def state_of(model: ModelState, version: int) -> tuple[State, str]:
    """Returns the state of a version, and the reason."""
    stamp = model.listing.files.get(version)
    if version in model.serving:
        return "READY", ""
    if version in model.coming:
        return "LOADING", "loading"
    if model.unloaded:
        return "UNAVAILABLE", _UNLOADED
    if model.listing.problem:
        return "UNAVAILABLE", model.listing.problem
    if not version:
        return "UNAVAILABLE", model.listing.empty
    if version in model.listing.unreadable:
        return "UNAVAILABLE", "its folder cannot be read: Permission denied"
    if stamp is None:
        return "UNAVAILABLE", f"{repository.MODEL_FILE} is missing"
    if (version, stamp) in model.failures.reasons:
        return "UNAVAILABLE", model.failures.reasons[version, stamp]
    if model.serving:
        return "UNAVAILABLE", listed_versions(model.serving, "serves", "serve")
    return "UNAVAILABLE", listed_versions(model.coming, "is loading", "are loading")


def count_serving(name: str, version: int, loaded: Loaded, engine: EngineConfig, *, ready: bool) -> None:
    """Shows that a version serves, and how; or that it no longer does."""
    session, device = loaded.session, engine.device
    MODEL_READY.labels(name, version, session.provider, device).set(ready)
    for ran_by, count in session.nodes.items():
        MODEL_NODES.labels(name, version, ran_by, device).set(count if ready else 0)
    MODEL_OBJECTIVE.labels(name, version).set(loaded.limits.objective)
    fallen = session.provider == CPU and gpu_offered(loaded.config.provider or engine.provider)
    MODEL_FALLBACK.labels(name, version, device).set(ready and fallen)
    EXAMPLE_FAILURES.labels(name, version)  # from 0: an increase from nothing is none to Prometheus


def count_refused(name: str, version: int, reason: str) -> None:
    """Counts a version that is not loaded, if that is because of its example."""
    if reason.startswith(WRONG_EXAMPLE):
        EXAMPLE_FAILURES.labels(name, version).inc()


def cut(reason: str) -> str:
    """Returns a reason, shortened if a file has made it long."""
    return reason if len(reason) <= _MOST_OF_A_REASON else f"{reason[:_MOST_OF_A_REASON]}..."


def listed_versions(versions: Collection[int], verb: str, plural: str) -> str:
    """Returns what versions do, such as "versions 3, 4 serve"."""
    if len(versions) == 1:
        return f"version {next(iter(versions))} {verb}"
    return f"versions {listed(map(str, sorted(versions)), _NAMED)} {plural}"


def limitations(session: Session) -> Iterator[str]:
    """Yields the limitations of a version that serves."""
    if session.apart:
        yield f"requests run one at a time: {session.apart}"
    if session.left_out:
        yield f"without {session.left_out}"
    if session.elsewhere:
        yield session.elsewhere
