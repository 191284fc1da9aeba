"""Keeps the sessions in step with the model repository, and publishes the table of versions."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from convoy.service import repository
from convoy.service.buckets import Buckets, Size
from convoy.service.config import Config, load_model_config
from convoy.service.engine import profiles
from convoy.service.engine.acceptance import Acceptance, Candidate, Quarantined, Served
from convoy.service.engine.instances import Together
from convoy.service.engine.learned_buckets import MOST_PADDING, choose
from convoy.service.engine.profiles import Profile
from convoy.service.engine.profiling import shapes, warm
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.session import Session
from convoy.service.engine.session_builder import Loaded, load
from convoy.service.errors import BadConfig, BadMetadata, BadModelFile, listed
from convoy.service.ipc.messages import Suspect
from convoy.service.metrics import MODEL_BATCHED, MODEL_QUARANTINED, MODEL_READY
from convoy.service.repository import Listing, ReadSettings, Stamp, State, Table, Version

log = logging.getLogger(__name__)

_QUIET = 30.0  # seconds between log entries on one version: a slow copy fails with each part that arrives
_RETRY, _LAST_RETRY = 60.0, 600.0  # seconds before a retry: the first one, and at most
_DEADLY = "several of its inputs ended the engine, or made it hang; it is retried when it changes, or later"
_MOST_OF_A_REASON = 500  # characters; a file may choose the text
_NAMED = 8  # versions in a reason
_DEATHS = 3  # of engines; other causes of death, such as a lack of memory, seldom occur three times on one file


_Key = tuple[int, Stamp]  # a version, and the state of its files


class _Retry(NamedTuple):
    """The time of the next retry, on the loader's clock, and the wait before it, in seconds."""

    at: float
    wait: float


@dataclass(slots=True)
class _Failures:
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
        self.reasons[version, stamp] = _cut(reason)
        self._retries[version, stamp] = _Retry(now + wait, wait)

    def forgive(self, present: Collection[_Key], now: float) -> None:
        """Removes failures whose files are gone or have changed, and those that are due for a retry."""
        self._retries = {key: retry for key, retry in self._retries.items() if key in present}
        self.reasons = {
            key: reason for key, reason in self.reasons.items() if key in present and now < self._retries[key].at
        }


@dataclass(slots=True)
class _Model:
    listing: Listing = field(default_factory=Listing)
    problem: str = ""  # of the folder, at the last scan
    serving: set[int] = field(default_factory=set)
    coming: set[int] = field(default_factory=set)  # versions that are being tried or loaded, or wait for that
    failures: _Failures = field(default_factory=_Failures)


class _Reporter:
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
        for row in table.versions:
            if row.state == "UNAVAILABLE" and row != known.get((row.model, row.version)):
                expected = row.reason.startswith("version")
                level = logging.DEBUG if expected or self._logged_lately(row) else logging.ERROR
                log.log(level, "model %s version %d is not served: %s", row.model, row.version, row.reason)
        self._published = table
        self._publish(table)

    def report_problem(self, problem: str) -> None:
        self._published = None
        self._publish(Table(problem=problem))

    def _logged_lately(self, row: Version) -> bool:
        now, key = self._clock(), (row.model, row.version)
        if now < self._logged.get(key, -math.inf) + _QUIET:
            return True
        self._logged[key] = now
        return False


class Loader:
    """Loads versions that should serve and retires the others.

    One writer of all state: the loader's thread, which calls all methods except `joins` and `is_retired`. `versions` is
    replaced as a whole, so any thread may read it. A retired version stays in `versions` until `drop` is called for it,
    because requests may be in flight.
    """

    def __init__(
        self,
        root: Path,
        config: Config,
        publish: Callable[[Table], None],
        announce: Callable[[Suspect | None], None] = lambda what: None,
        suspects: Mapping[Suspect, int] = MappingProxyType({}),
        withdrawn: Collection[tuple[str, int]] = (),
        clock: Callable[[], float] = time.monotonic,
        acceptance: Acceptance | None = None,
        read_settings: ReadSettings = load_model_config,
    ) -> None:
        """`announce` is called with each version before it loads, and with None afterwards. `suspects` contains the
        number of engines that died while they loaded each version, `withdrawn` the versions whose inputs end engines.
        Without `acceptance`, files are loaded as they lie in the repository."""
        self.versions: Mapping[tuple[str, int], Loaded] = {}
        self._root = root
        self._config = config
        self._announce = announce
        self._suspects = suspects
        self._withdrawn = set(withdrawn)
        self._clock = clock
        self._acceptance = acceptance
        self._scan = repository.Scanner(root, read_settings)
        self._reporter = _Reporter(publish, clock)
        self._models: dict[str, _Model] = {}
        self._complete = False
        self._quarantined: set[tuple[str, int]] = set()
        self._restored = False  # whether the versions of the previous engine have been loaded

    def refresh(self) -> None:
        """Scans the repository and loads new versions. Publishes the table whenever it changes."""
        listings = self._scan.run()
        if listings is None:
            if not self._complete:
                self._reporter.report_problem(f"the model repository cannot be read: {self._scan.unreadable}")
            return
        self._restore(listings)
        for name in self._models.keys() - listings.keys():
            self._retire(name, self._models[name], ())
            del self._models[name]
        for name, listing in listings.items():
            model = self._models.setdefault(name, _Model())
            self._update(name, model, listing)
            for version in self._due(name, model):
                self._file_of(name, model, version)  # all trials begin before the first version loads
        self._report()
        for name, model in sorted(self._models.items(), key=lambda item: self._deaths(*item)):
            self._follow(name, model)
        if not any(self._awaited(*item) for item in self._models.items()):
            self._complete = True
        self._report()
        self._count_quarantined()
        self._keep()

    def drop(self, model: str, version: int) -> None:
        """Removes a retired version that nothing refers to any more."""
        if self.is_retired(model, version):
            self.versions = {key: loaded for key, loaded in self.versions.items() if key != (model, version)}
            self._record()

    def withdraw(self, model: str, version: int) -> None:
        """Ends the service of a version at once, because its inputs end engines. It is retried as one that failed to
        load."""
        entry, loaded = self._models.get(model), self.versions.get((model, version))
        if entry is None:
            return
        stamp = entry.listing.files.get(version) or (None if loaded is None else loaded.stamp)
        if stamp is None:
            return
        entry.failures.add(version, stamp, _DEADLY, self._clock())
        if version in entry.serving:
            self._retire(model, entry, entry.serving - {version})
        self.versions = {key: loaded for key, loaded in self.versions.items() if key != (model, version)}
        self._record()
        self._follow(model, entry)

    def joins(self, model: str, version: int) -> bool:
        """Returns whether requests for a loaded version may share runs."""
        entry = self.versions.get((model, version))
        return entry is not None and entry.limits.max_batch_size > 1

    def run_apart(self, model: str, version: int, reason: str) -> None:
        """Stops requests for a version from sharing runs, after a batch has shown that they may not."""
        entry = self.versions.get((model, version))
        if entry is None or not self.joins(model, version):
            return
        for instance in entry.instances.all:
            instance.session.run_apart(reason)
        self._put(model, version, replace(entry, limits=replace(entry.limits, max_batch_size=1)))
        _report_apart(model, version, entry.session)
        self._report()

    def choose_buckets(self, model: str, version: int, images: Mapping[Size, float]) -> None:
        """Chooses buckets for images of these sizes, which the version received. Runs every batch size of a new bucket
        before publishing it. The version serves meanwhile: a batch may wait for one such run.
        """
        entry = self.versions.get((model, version))
        if entry is None or self.is_retired(model, version):
            return
        try:
            chosen = _warmed_buckets(entry, images, self._config)
        except Exception:  # the version serves without the new buckets
            log.exception("model %s version %d: a run of a new bucket failed", model, version)
            return
        if chosen != entry.buckets.sizes:
            self._put(model, version, replace(entry, buckets=Buckets(chosen, MOST_PADDING)))
            self._report()
            shown = ", ".join(f"{height}x{width}" for height, width in chosen)
            log.info("model %s version %d: images are padded to %s", model, version, shown)

    def revise(self, model: str, version: int, shape: Hashable, seconds: Mapping[int, float]) -> None:
        """Updates a version's profile of a shape with batch times that were measured while it served, and stores it."""
        entry = self.versions.get((model, version))
        if entry is None or self.is_retired(model, version):
            return
        revised = [profiles.revised(each, seconds) if each.key == shape else each for each in entry.profiles]
        if revised == list(entry.profiles):
            return  # the shape was not expected, so it has no profile
        profiles.replace(repository.model_file(self._root, model, version).parent, revised)
        self._put(model, version, replace(entry, profiles=tuple(revised)))
        size = min(profile.batch_size for profile in revised)
        text = "model %s version %d: its profile was wrong; batches of up to %d are the most efficient"
        log.info(text, model, version, size)
        self._report()

    def is_retired(self, model: str, version: int) -> bool:
        """Returns whether a loaded version no longer serves."""
        entry = self._models.get(model)
        return (model, version) in self.versions and (entry is None or version not in entry.serving)

    def table(self) -> Table:
        """Returns the current table."""
        rows = [
            _row(name, model, version, self.versions.get((name, version)))
            for name, model in sorted(self._models.items())
            for version in _versions(model)
        ]
        return Table(tuple(rows), self._complete)

    def _put(self, model: str, version: int, loaded: Loaded) -> None:
        self.versions = {**self.versions, (model, version): loaded}

    def _update(self, name: str, model: _Model, listing: Listing) -> None:
        """Accepts the current state of a model's folder. A problem in it never ends a version that serves."""
        if listing.problem and listing.problem != model.problem:
            remains = f"; {_named(model.serving, 'continues', 'continue')} to serve" if model.serving else ""
            log.error("model %s: %s%s", name, listing.problem, remains)
        model.problem = listing.problem
        if listing.note and listing.note != model.listing.note:
            log.info("model %s: %s", name, listing.note)
        if listing.problem and model.serving:
            listing = model.listing
        if listing.config != model.listing.config:
            model.failures = _Failures()  # the old configuration may have been the cause, such as its provider
        present = set(listing.files.items())
        model.failures.forgive(present, self._clock())
        model.listing = listing

    def _wanted(self, name: str, model: _Model) -> list[int]:
        """Returns the versions that should serve, from the highest down."""
        late = {version for version in model.coming if self._is_late(name, model, version)}
        setting = model.listing.config.versions or self._config.repository.versions
        return repository.wanted(model.listing, setting, model.failures.reasons, model.serving, late)

    def _due(self, name: str, model: _Model) -> list[int]:
        """Returns the versions that are to be loaded, from the highest down, and records them as coming."""
        due = []
        for version in self._wanted(name, model):
            stamp = model.listing.files[version]
            current = self.versions[name, version] if version in model.serving else None
            same = current is not None and (current.stamp, current.config) == (stamp, model.listing.config)
            if not same and (version, stamp) not in model.failures.reasons:
                due.append(version)
        model.coming = set(due)
        return due

    def _candidate(self, name: str, model: _Model, version: int) -> Candidate:
        return Candidate(name, version, model.listing.files[version], model.listing.config)

    def _is_late(self, name: str, model: _Model, version: int) -> bool:
        if self._acceptance is None or version not in model.listing.files:
            return False
        return self._acceptance.is_late(self._candidate(name, model, version))

    def _awaited(self, name: str, model: _Model) -> bool:
        """Returns whether a version is still coming that the first scan waits for."""
        return any(not self._is_late(name, model, version) for version in model.coming)

    def _deaths(self, name: str, model: _Model) -> int:
        """Returns how many engines may have died of a version to load. Models with fewer deaths load first."""
        suspects = [_suspect(name, version, model.listing.files[version]) for version in model.coming]
        return max((self._suspects.get(suspect, 0) for suspect in suspects), default=0)

    def _follow(self, name: str, model: _Model) -> None:
        """Loads what is to be loaded now, the highest version first, and retires what no longer should serve."""
        while True:
            due = self._due(name, model)
            files = ((version, self._file_of(name, model, version)) for version in due)
            ready = next(((version, file) for version, file in files if file is not None), None)
            if ready is not None:
                self._report()
                self._load(name, model, *ready)
            elif self._due(name, model) == due:  # no further version has failed its trial
                break
        wanted = self._wanted(name, model)
        if model.serving.issuperset(wanted):
            self._retire(name, model, wanted)
        self._report()

    def _file_of(self, name: str, model: _Model, version: int) -> Path | None:
        """Returns the file to load a version from; None if it is still tried, or has failed."""
        if self._acceptance is None:
            return repository.model_file(self._root, name, version)
        candidate = self._candidate(name, model, version)
        try:
            return self._acceptance.ask(candidate)
        except BadModelFile as error:
            final = isinstance(error, Quarantined)
            model.failures.add(version, candidate.stamp, error.message, self._clock(), final=final)
            self._report_kept(name, model, version, error.message)
            return None

    def _restore(self, listings: Mapping[str, Listing]) -> None:
        """Loads first what the previous engine served, from its copies: requests for it wait, and its file may have
        been spoiled since."""
        if self._restored or self._acceptance is None:
            return
        self._restored = True
        for served in self._acceptance.served_before():
            if served.model not in listings:
                continue
            model = self._models.setdefault(served.model, _Model())
            known = {**model.listing.files, served.version: served.stamp}
            model.listing = Listing(config=served.settings, files=known)
            self._load(served.model, model, served.version, Path(served.file))

    def _count_quarantined(self) -> None:
        quarantined = {(name, version) for name, model in self._models.items() for version in model.failures.final}
        for name, version in quarantined ^ self._quarantined:
            gauge = MODEL_QUARANTINED.labels(name, version, self._config.engine.device)
            gauge.set((name, version) in quarantined)
        self._quarantined = quarantined

    def _keep(self) -> None:
        if self._acceptance is None:
            return
        candidates = {
            self._candidate(name, model, version)
            for name, model in self._models.items()
            for version in model.coming | model.serving
            if version in model.listing.files
        }
        self._acceptance.keep(candidates, self._served())

    def _record(self) -> None:
        if self._acceptance is not None:
            self._acceptance.record(self._served())

    def _served(self) -> list[Served]:
        # With those that are retired: requests for them may be in flight, and are sent again if this engine dies.
        return [
            Served(name, version, entry.stamp, entry.config, str(entry.file))
            for (name, version), entry in sorted(self.versions.items())
        ]

    def _load(self, name: str, model: _Model, version: int, file: Path) -> None:
        """Loads a version, which then serves; otherwise records why not."""
        stamp = model.listing.files[version]
        suspect = _suspect(name, version, stamp)
        if (name, version) in self._withdrawn:
            self._withdrawn.discard((name, version))  # a retry, or other files, may load
            model.failures.add(version, stamp, _DEADLY, self._clock())
            return
        if self._suspects.get(suspect, 0) >= _DEATHS:
            reason = f"{_DEATHS} engines died while loading it; it is retried when it changes"
            model.failures.add(version, stamp, reason, self._clock())
            return
        self._announce(suspect)
        log.debug("model %s version %d is being loaded", name, version)
        try:
            folder = repository.model_file(self._root, name, version).parent
            loaded = load(file, stamp, self._config, model.listing.config, folder)
        except (BadConfig, BadModelFile, BadMetadata) as error:
            model.failures.add(version, stamp, error.message, self._clock())
            self._report_kept(name, model, version, error.message)
            return
        except Exception:  # no file, whatever its content, may end the engine for all models
            log.exception("model %s version %d cannot be loaded", name, version)
            model.failures.add(version, stamp, "loading it failed in a way that is in the log", self._clock())
            return
        finally:
            self._announce(None)
        self._put(name, version, loaded)
        model.serving.add(version)
        model.coming.discard(version)
        self._record()
        self._mark(name, version, ready=True)
        self._report()  # before the log says so
        provider = loaded.session.provider
        fields = {"model": name, "version": version, "provider": provider, "instances": len(loaded.instances)}
        log.info("model %s version %d serves on %s", name, version, provider, extra={"fields": fields})
        _report_apart(name, version, loaded.session)
        if loaded.session.document is not None and loaded.session.golden is None:
            log.debug("model %s version %d has no example whose answer could be checked", name, version)

    def _report_kept(self, name: str, model: _Model, version: int, reason: str) -> None:
        if version in model.serving:
            log.error("model %s version %d stays as it was loaded: %s", name, version, _cut(reason))

    def _retire(self, name: str, model: _Model, wanted: Collection[int]) -> None:
        """Ends the service of all versions but the wanted ones."""
        for version in sorted(model.serving.difference(wanted)):
            self._mark(name, version, ready=False)
            log.info("model %s version %d no longer serves", name, version)
            model.serving.discard(version)

    def _mark(self, name: str, version: int, *, ready: bool) -> None:
        provider = self.versions[name, version].session.provider
        MODEL_READY.labels(name, version, provider, self._config.engine.device).set(ready)

    def _report(self) -> None:
        self._reporter.report(self.table())


def _suspect(name: str, version: int, stamp: Stamp) -> Suspect:
    text = hashlib.blake2b(msgspec.json.encode(stamp), digest_size=16).hexdigest()
    return Suspect(name, version, text)


def _row_seconds(profile: Profile) -> float:
    """Returns the seconds of one row in the most efficient batch."""
    size = profile.batch_size
    return RunTimes(max(profile.batches), profile.seconds).predict(size) / size


def _versions(model: _Model) -> list[int]:
    """Returns the versions in descending order; 0 stands for those of a folder that cannot be read."""
    # A version whose files are gone serves until others have taken its place.
    found = sorted({*model.listing.files, *model.listing.missing, *model.serving}, reverse=True)
    return found or ([0] if model.listing.problem else [])


def _row(name: str, model: _Model, version: int, loaded: Loaded | None) -> Version:
    """Returns a version's row of the table."""
    state, reason = _state(model, version)
    if state != "READY" or loaded is None:
        return Version(model=name, version=version, state=state, reason=reason)
    session = loaded.session
    return Version(
        model=name,
        version=version,
        state=state,
        reason="; ".join(_without(session)),
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
        buckets=loaded.buckets,
    )


def _state(model: _Model, version: int) -> tuple[State, str]:
    stamp = model.listing.files.get(version)
    if version in model.serving:
        return "READY", ""
    if version in model.coming:
        return "LOADING", "loading"
    if model.listing.problem:
        return "UNAVAILABLE", model.listing.problem
    if version in model.listing.unreadable:
        return "UNAVAILABLE", "its folder cannot be read: Permission denied"
    if stamp is None:
        return "UNAVAILABLE", f"{repository.MODEL_FILE} is missing"
    if (version, stamp) in model.failures.reasons:
        return "UNAVAILABLE", model.failures.reasons[version, stamp]
    if model.serving:
        return "UNAVAILABLE", _named(model.serving, "serves", "serve")
    return "UNAVAILABLE", _named(model.coming, "is loading", "are loading")


def _cut(reason: str) -> str:
    return reason if len(reason) <= _MOST_OF_A_REASON else f"{reason[:_MOST_OF_A_REASON]}..."


def _named(versions: Collection[int], verb: str, plural: str) -> str:
    if len(versions) == 1:
        return f"version {next(iter(versions))} {verb}"
    return f"versions {listed(map(str, sorted(versions)), _NAMED)} {plural}"


def _without(session: Session) -> Iterator[str]:
    """Yields the limitations of a version that serves."""
    if session.apart:
        yield f"requests run one at a time: {session.apart}"
    if session.left_out:
        yield f"without {session.left_out}"


def _report_apart(name: str, version: int, session: Session) -> None:
    MODEL_BATCHED.labels(name, version).set(session.batched and not session.apart)
    if session.left_out:
        log.warning("model %s version %d serves without %s", name, version, session.left_out)
    if session.apart:
        log.warning("model %s version %d runs one request at a time: %s", name, version, session.apart)


def _warmed_buckets(entry: Loaded, images: Mapping[Size, float], config: Config) -> tuple[Size, ...]:
    """Returns buckets for images of these sizes. Each batch size of each new one has run; raises what a run raises."""
    chosen = choose(images, entry.buckets.sizes, config.limits.max_input_pixels)
    new = [bucket for bucket in chosen if bucket not in entry.buckets.sizes]
    most, max_pixels = entry.limits.max_batch_size, config.batching.max_batch_pixels
    for shape, fitting in shapes(entry.session.document, new, most, max_pixels).items():
        warm(Together(entry.instances), shape, min(fitting, entry.profiles[0].batch_size))
    return chosen
