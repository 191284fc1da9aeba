"""Keeps the sessions in step with the model repository, and tells what it has: the table of versions."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import msgspec

from convoy.service import buckets, repository
from convoy.service.buckets import NONE, Buckets, Size
from convoy.service.config import Config, ModelConfig
from convoy.service.engine.failures import Failures
from convoy.service.engine.instances import Instances, Together
from convoy.service.engine.learned_buckets import MOST_PADDING, choose, pays
from convoy.service.engine.profile import Profile
from convoy.service.engine.profiling import Shape, shapes, warm
from convoy.service.engine.providers import Device
from convoy.service.engine.row_independence import settle
from convoy.service.engine.scheduler.batcher import Limits
from convoy.service.engine.session import Session
from convoy.service.engine.session_builder import build
from convoy.service.errors import BadConfig, BadMetadata, BadModelFile
from convoy.service.ipc.messages import Suspect
from convoy.service.metadata import Document
from convoy.service.metrics import MODEL_BATCHED, MODEL_READY
from convoy.service.repository import MAX_NAME, Listing, Stamp, State, Table, Version

log = logging.getLogger(__name__)

DEFAULT_OBJECTIVE = 0.1  # seconds
_USUAL = (256, 256)  # pixels of an image of any size
_QUIET = 30.0  # seconds in which a version is named in the log once: a slow copy fails with each part that comes
_DEATHS = 3  # of engines: what else may end one, such as a lack of memory, seldom does so three times on one file
_RUNS = 5  # of one image: an objective that leaves room for a few of them


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that can run."""

    instances: Instances
    stamp: Stamp
    config: ModelConfig
    limits: Limits
    profiles: tuple[Profile, ...]  # of the shapes of which it is known before that it will be asked for them
    allowed: float = math.inf  # seconds in which a request without a deadline must be answered
    buckets: Buckets = NONE
    learns: bool = False  # its buckets, from the sizes of images that come

    @property
    def session(self) -> Session:
        """One of those that run it, to be asked what it takes and gives."""
        return self.instances.session


@dataclass(slots=True)
class _Model:
    listing: Listing = field(default_factory=Listing)
    problem: str = ""  # of the folder, when it was last looked at
    serving: int | None = None
    loading: int | None = None
    failures: Failures = field(default_factory=Failures)


class Loader:
    """Loads what should serve and retires what should not.

    One writer of everything here: the loader's thread, which calls all methods but `joins` and `is_retired`. `versions`
    is replaced as a whole, so any thread may read it. A retired version stays in `versions` until `drop` is called for
    it, because requests may be on their way.
    """

    def __init__(
        self,
        root: Path,
        config: Config,
        publish: Callable[[Table], None],
        announce: Callable[[Suspect | None], None] = lambda what: None,
        suspects: Mapping[Suspect, int] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`announce` is called with what is loaded next, and with None when that has ended. `suspects` have been loaded
        by so many engines that died of it, or while they did so."""
        self.versions: Mapping[tuple[str, int], Loaded] = {}
        self._root = root
        self._config = config
        self._publish = publish
        self._announce = announce
        self._suspects = suspects
        self._clock = clock
        self._logged: dict[tuple[str, int], float] = {}  # when it was last logged that a version is not served
        self._models: dict[str, _Model] = {}
        self._complete = False
        self._published: Table | None = None
        self._unreadable: str | None = None  # why the repository could not be read, when it was last looked at
        self._misnamed: set[str] = set()  # folders, when they were last looked at

    def refresh(self) -> None:
        """Look at the repository and load what has come. Publishes the table whenever it has changed."""
        try:
            listings = repository.scan(self._root)
            misnamed = repository.misnamed(self._root)
        except OSError as error:
            if error.strerror != self._unreadable:
                log.error("model repository cannot be read: %s; what is loaded goes on serving", error.strerror)
            self._unreadable = error.strerror
            if not self._complete:
                self._publish(Table(problem=f"the model repository cannot be read: {error.strerror}"))
                self._published = None
            return
        self._unreadable = None
        for name in set(misnamed) - self._misnamed:
            log.warning("folder %r is passed over: a model's name is 1 to %d of a-z, 0-9, - and _", name, MAX_NAME)
        self._misnamed = set(misnamed)
        for name in self._models.keys() - listings.keys():
            self._retire(name, self._models[name])
            del self._models[name]
        for name, listing in listings.items():
            model = self._models.setdefault(name, _Model())
            self._take(name, model, listing)
            if model.serving is None:
                model.loading = repository.choose(model.listing, model.failures.reasons)
        self._tell()
        for name, model in sorted(self._models.items(), key=lambda item: self._deaths(*item)):
            self._bring_up(name, model)
        self._complete = True
        self._tell()

    def drop(self, model: str, version: int) -> None:
        """Forget a retired version: nothing refers to it any more."""
        if self.is_retired(model, version):
            self.versions = {key: loaded for key, loaded in self.versions.items() if key != (model, version)}

    def joins(self, model: str, version: int) -> bool:
        """Whether requests for a loaded version may share runs."""
        entry = self.versions.get((model, version))
        return entry is not None and entry.limits.max_batch_size > 1

    def run_apart(self, model: str, version: int, reason: str) -> None:
        """A batch has shown that requests for this version may not share runs: they no longer do."""
        entry = self.versions.get((model, version))
        if entry is None or not self.joins(model, version):
            return
        for instance in entry.instances.all:
            instance.session.run_apart(reason)
        self._put(model, version, replace(entry, limits=replace(entry.limits, max_batch_size=1)))
        _report_apart(model, version, entry.session)
        self._tell()

    def choose_buckets(self, model: str, version: int, images: Mapping[Size, float]) -> None:
        """Buckets for images of these sizes, which the version was sent; every batch size of a new one has run before
        anybody is told of it. The version serves meanwhile: a batch may find one such run before it.
        """
        entry = self.versions.get((model, version))
        if entry is None or self.is_retired(model, version):
            return
        chosen = choose(images, entry.buckets.sizes, self._config.limits.max_input_pixels)
        new = [bucket for bucket in chosen if bucket not in entry.buckets.sizes]
        if chosen == entry.buckets.sizes:
            return
        most, max_pixels = entry.limits.max_batch_size, self._config.batching.max_batch_pixels
        try:
            for shape, fitting in shapes(entry.session.document, new, most, max_pixels).items():
                warm(Together(entry.instances), shape, min(fitting, entry.profiles[0].batch_size))
        except Exception:  # it serves without them
            log.exception("model %s version %d: a run of a new bucket failed", model, version)
            return
        self._put(model, version, replace(entry, buckets=Buckets(chosen, MOST_PADDING)))
        self._tell()
        shown = ", ".join(f"{height}x{width}" for height, width in chosen)
        log.info("model %s version %d: images are padded to %s", model, version, shown)

    def is_retired(self, model: str, version: int) -> bool:
        """Whether a loaded version no longer serves."""
        entry = self._models.get(model)
        return (model, version) in self.versions and (entry is None or entry.serving != version)

    def table(self) -> Table:
        """What there is now."""
        rows = [
            self._row(name, model, version)
            for name, model in sorted(self._models.items())
            for version in _versions(model.listing)
        ]
        return Table(tuple(rows), self._complete)

    def _put(self, model: str, version: int, loaded: Loaded) -> None:
        self.versions = {**self.versions, (model, version): loaded}

    def _take(self, name: str, model: _Model, listing: Listing) -> None:
        """A model's folder as it is now. What is wrong with it never ends a version that serves."""
        if listing.problem and listing.problem != model.problem:
            goes_on = f"; version {model.serving} goes on as it is" if model.serving else ""
            log.error("model %s: %s%s", name, listing.problem, goes_on)
        model.problem = listing.problem
        if listing.note and listing.note != model.listing.note:
            log.info("model %s: %s", name, listing.note)
        if listing.problem and model.serving is not None:
            listing = model.listing
        if listing.config != model.listing.config:
            model.failures = Failures()  # the provider, say, may have been what failed
        present = set(listing.files.items())
        model.failures.forgive(present, self._clock())
        model.listing = listing

    def _deaths(self, name: str, model: _Model) -> int:
        """Engines that may have died of what this model would load: the others are loaded first."""
        version = repository.choose(model.listing, model.failures.reasons)
        return 0 if version is None else self._suspects.get(_suspect(name, version, model.listing.files[version]), 0)

    def _bring_up(self, name: str, model: _Model) -> None:
        while (version := repository.choose(model.listing, model.failures.reasons)) is not None:
            if _stays(model, version):
                break
            stamp = model.listing.files[version]
            if model.serving == version:
                there = self.versions[name, version]
                if (there.stamp, there.config) == (stamp, model.listing.config):
                    break
            model.loading = version
            self._tell()
            loaded = self._load(name, model, version, stamp)
            model.loading = None
            if loaded is not None:
                before, model.serving = model.serving, version
                self._put(name, version, loaded)
                self._mark(name, version, ready=True)
                if before is not None and before != version:
                    self._mark(name, before, ready=False)
                break
        model.loading = None
        if version is None and not _stays(model, version):
            self._retire(name, model)
        self._tell()

    def _load(self, name: str, model: _Model, version: int, stamp: Stamp) -> Loaded | None:
        settings, engine, batching = model.listing.config, self._config.engine, self._config.batching
        file = repository.model_file(self._root, name, version)
        most = settings.max_batch_size or batching.max_batch_size
        objective_ms = settings.latency_objective_ms or batching.latency_objective_ms
        device = Device(settings.provider or engine.provider, engine, most)
        wanted = settings.instances or engine.instances
        objective = DEFAULT_OBJECTIVE if objective_ms is None else objective_ms / 1000
        suspect = _suspect(name, version, stamp)
        if self._suspects.get(suspect, 0) >= _DEATHS:
            reason = f"{_DEATHS} engines have died while they loaded it; it is tried again when it changes"
            model.failures.add(version, stamp, reason, self._clock())
            return None
        self._announce(suspect)
        log.debug("model %s version %d is being loaded", name, version)
        try:
            instances, measured = build(file, device, wanted, objective, partial(self._shapes, settings, most))
            settle(instances, settings.batched)
            padded = self._buckets(settings, instances.session.document)
        except (BadConfig, BadModelFile, BadMetadata) as error:
            model.failures.add(version, stamp, error.message, self._clock())
            if version == model.serving:
                log.error("model %s version %d goes on as it was loaded: %s", name, version, error.message)
            return None
        except Exception:  # one file, whatever is in it, must not end the engine for all
            log.exception("model %s version %d cannot be loaded", name, version)
            model.failures.add(version, stamp, "loading it failed in a way that is in the log", self._clock())
            return None
        finally:
            self._announce(None)
        delay_ms = settings.max_queue_delay_ms
        session = instances.session
        limits = Limits(
            max_batch_size=most if session.batched and not session.apart else 1,
            max_queue_delay=(batching.max_queue_delay_ms if delay_ms is None else delay_ms) / 1000,
            max_queue=settings.max_queue or batching.max_queue,
            objective=_objective(measured) if objective_ms is None else objective_ms / 1000,
            policy=settings.policy or batching.policy,
            instances=len(instances),
        )
        learns = (
            session.batched
            and not session.apart
            and self._may_learn(settings, session.document)
            and pays(measured[0].seconds)
        )
        fields = {"model": name, "version": version, "provider": session.provider, "instances": len(instances)}
        log.info("model %s version %d serves on %s", name, version, session.provider, extra={"fields": fields})
        _report_apart(name, version, session)
        allowed = math.inf if objective_ms is None else objective_ms / 1000
        return Loaded(instances, stamp, settings, limits, measured, allowed, padded, learns)

    def _buckets(self, settings: ModelConfig, document: Document | None) -> Buckets:
        pixels = self._config.limits.max_input_pixels
        return buckets.configured(self._config.batching.buckets, settings.buckets, document, pixels)

    def _shapes(self, settings: ModelConfig, most: int, session: Session) -> Mapping[Shape, int]:
        document = session.document
        wanted = self._buckets(settings, document).sizes
        if document is not None and self._may_learn(settings, document):
            wanted = (buckets.rounded(document.image, *_USUAL),)  # which tells whether batches bring anything here
        return shapes(document, wanted, most if session.batched else 1, self._config.batching.max_batch_pixels)

    def _may_learn(self, settings: ModelConfig, document: Document | None) -> bool:
        chosen = settings.buckets or self._config.batching.buckets
        return chosen == "auto" and buckets.takes_buckets(document)

    def _retire(self, name: str, model: _Model) -> None:
        if model.serving is not None:
            self._mark(name, model.serving, ready=False)
            log.info("model %s version %d no longer serves", name, model.serving)
            model.serving = None

    def _mark(self, name: str, version: int, *, ready: bool) -> None:
        provider = self.versions[name, version].session.provider
        MODEL_READY.labels(name, version, provider, self._config.engine.device).set(ready)

    def _row(self, name: str, model: _Model, version: int) -> Version:
        state, reason = self._state(model, version)
        loaded = self.versions.get((name, version))
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
            max_queue_delay_ms=loaded.limits.max_queue_delay * 1000,
            buckets=loaded.buckets,
        )

    def _state(self, model: _Model, version: int) -> tuple[State, str]:
        stamp = model.listing.files.get(version)
        if model.serving == version:
            return "READY", ""
        if model.loading == version:
            return "LOADING", "loading"
        if model.listing.problem:
            return "UNAVAILABLE", model.listing.problem
        if version in model.listing.unreadable:
            return "UNAVAILABLE", "its folder cannot be read: Permission denied"
        if stamp is None:
            return "UNAVAILABLE", f"{repository.MODEL_FILE} is missing"
        if (version, stamp) in model.failures.reasons:
            return "UNAVAILABLE", model.failures.reasons[version, stamp]
        if model.serving is not None:
            return "UNAVAILABLE", f"version {model.serving} serves"
        return "UNAVAILABLE", f"version {model.loading} is loading"

    def _logged_lately(self, row: Version) -> bool:
        now, key = self._clock(), (row.model, row.version)
        if now < self._logged.get(key, -math.inf) + _QUIET:
            return True
        self._logged[key] = now
        return False

    def _tell(self) -> None:
        table = self.table()
        if table == self._published:
            return
        known = {(row.model, row.version): row for row in self._published.versions} if self._published else {}
        for row in table.versions:
            if row.state == "UNAVAILABLE" and row != known.get((row.model, row.version)):
                expected = row.reason.startswith("version ")
                level = logging.DEBUG if expected or self._logged_lately(row) else logging.ERROR
                log.log(level, "model %s version %d is not served: %s", row.model, row.version, row.reason)
        self._published = table
        self._publish(table)


def _suspect(name: str, version: int, stamp: Stamp) -> Suspect:
    text = hashlib.blake2b(msgspec.json.encode(stamp), digest_size=16).hexdigest()
    return Suspect(name, version, text)


def _versions(listing: Listing) -> list[int]:
    """From the highest down; 0 stands for those of a folder that cannot be read."""
    found = sorted({*listing.files, *listing.missing}, reverse=True)
    return found or ([0] if listing.problem else [])


def _without(session: Session) -> Iterator[str]:
    """What a version that serves goes without."""
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


def _objective(measured: Sequence[Profile]) -> float:
    """Seconds in which an answer should come where nobody has said so."""
    return max(DEFAULT_OBJECTIVE, *(_RUNS * profile.seconds[1] for profile in measured), 0.0)


def _stays(model: _Model, version: int | None) -> bool:
    """What serves goes on: its file is there, though it may not load any more, and nothing above it can be served."""
    serving = model.serving
    return serving is not None and serving in model.listing.files and (version is None or version < serving)
