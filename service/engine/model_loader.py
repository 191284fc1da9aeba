"""Keeps the sessions in step with the model repository, and publishes the table of versions."""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import msgspec

from convoy.service import repository
from convoy.service.buckets import Buckets, Size
from convoy.service.config import Config, VersionsSetting, load_model_config
from convoy.service.engine import profiles
from convoy.service.engine.acceptance import Acceptance, Candidate, Quarantined, Served
from convoy.service.engine.instances import Together
from convoy.service.engine.learned_buckets import MOST_PADDING, choose
from convoy.service.engine.profiling import shapes, warm
from convoy.service.engine.session import Session
from convoy.service.engine.session_builder import Loaded, load
from convoy.service.engine.version_states import (
    Failures,
    ModelState,
    Reporter,
    count_refused,
    count_serving,
    cut,
    is_expected,
    listed_versions,
    row_of,
    state_of,
    versions_of,
)
from convoy.service.errors import BadConfig, BadMetadata, BadModelFile, ModelUnavailable, UnknownModel
from convoy.service.ipc.messages import Suspect
from convoy.service.metrics import MODEL_BATCHED, MODEL_QUARANTINED, count_unready
from convoy.service.repository import Listing, ReadSettings, Stamp, Table
from convoy.service.sources import Scanner, Source

log = logging.getLogger(__name__)

_DEADLY = "several of its inputs ended the engine, or made it hang; it is retried when it changes, or later"
_DEATHS = 3  # of engines; other causes of death, such as a lack of memory, seldom occur three times on one file


class Loader:
    """Loads versions that should serve and retires the others.

    One writer of all state: the loader's thread, which calls all methods except `joins` and `is_retired`. `versions` is
    replaced as a whole, so any thread may read it. A retired version stays in `versions` until `drop` is called for it,
    because requests may be in flight.
    """

    def __init__(
        self,
        source: Source,
        config: Config,
        publish: Callable[[Table], None],
        announce: Callable[[Suspect | None], None] = lambda what: None,
        suspects: Mapping[Suspect, int] = MappingProxyType({}),
        withdrawn: Collection[tuple[str, int]] = (),
        clock: Callable[[], float] = time.monotonic,
        acceptance: Acceptance | None = None,
        read_settings: ReadSettings = load_model_config,
        unloaded: Collection[str] = (),
    ) -> None:
        """`announce` is called with each version before it loads, and with None afterwards. `suspects` contains the
        number of engines that died while they loaded each version, `withdrawn` the versions whose inputs end engines.
        Without `acceptance`, files are loaded as they lie in the repository. Models that are `unloaded` do not serve
        until `load` is called for them."""
        self.versions: Mapping[tuple[str, int], Loaded] = {}
        self._source = source
        self._config = config
        self._announce = announce
        self._suspects = suspects
        self._withdrawn = set(withdrawn)
        self._unloaded = set(unloaded)
        self._clock = clock
        self._acceptance = acceptance
        self._scan = Scanner(source, read_settings)
        self._reporter = Reporter(publish, clock)
        self._models: dict[str, ModelState] = {}
        self._complete = False
        self._quarantined: set[tuple[str, int]] = set()
        self._unready: set[tuple[str, int]] = set()  # versions that should serve and cannot
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
            model = self._entry(name)
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
            if not self._complete:
                self._withdrawn.add((model, version))  # the first scan is still to come
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

    def load(self, model: str) -> None:
        """Looks at the repository now. The model may serve again if it was unloaded; what failed is tried again."""
        self._unloaded.discard(model)
        if model in self._models:
            self._models[model].failures = Failures()
            self._models[model].unloaded = False
        self.refresh()

    def unload(self, model: str) -> None:
        """Ends the service of a model until `load` is called for it. Raises UnknownModel."""
        if model not in self._models:
            raise UnknownModel(f"model {model!r} is not in the repository")
        self._unloaded.add(model)
        entry = self._models[model]
        entry.unloaded = True
        self._follow(model, entry)

    def outcome(self, model: str) -> int | None:
        """Returns the newest version of a model if it serves; None while it is tried or loaded.

        Raises UnknownModel if there is nothing to serve, ModelUnavailable with the reason why it does not serve.
        """
        if self._scan.unreadable is not None:
            raise ModelUnavailable(f"the model repository cannot be read: {self._scan.unreadable}")
        entry = self._models.get(model)
        if entry is None:
            raise UnknownModel(f"model {model!r} is not in the repository")
        if entry.problem:
            raise ModelUnavailable(f"model {model!r} is not loaded: {entry.problem}")
        newest = next(iter(repository.wanted(entry.listing, self._setting(entry))), None)
        if newest is None:
            raise UnknownModel(f"model {model!r} has no version with a {repository.MODEL_FILE} that should serve")
        if newest in entry.coming:
            return None
        reason = entry.failures.reasons.get((newest, entry.listing.files[newest]), "")
        if newest in entry.serving and not reason:
            return newest
        raise ModelUnavailable(
            f"version {newest} of model {model!r} is not loaded: {reason or state_of(entry, newest)[1]}"
        )

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
        self._report()
        _report_apart(model, version, entry.session)

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
        profiles.replace(self._source.keeping(model, version), revised)
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
            row_of(name, model, version, self.versions.get((name, version)))
            for name, model in sorted(self._models.items())
            for version in versions_of(model)
        ]
        return Table(tuple(rows), self._complete)

    def _put(self, model: str, version: int, loaded: Loaded) -> None:
        self.versions = {**self.versions, (model, version): loaded}

    def _update(self, name: str, model: ModelState, listing: Listing) -> None:
        """Accepts the current state of a model's folder. A problem in it never ends a version that serves."""
        if listing.problem and listing.problem != model.problem:
            remains = f"; {listed_versions(model.serving, 'continues', 'continue')} to serve" if model.serving else ""
            log.error("model %s: %s%s", name, listing.problem, remains)
        model.problem = listing.problem
        if listing.note and listing.note != model.listing.note:
            log.info("model %s: %s", name, listing.note)
        if listing.problem and model.serving:
            listing = model.listing
        if listing.config != model.listing.config:
            model.failures = Failures()  # the old configuration may have been the cause, such as its provider
        present = set(listing.files.items())
        model.failures.forgive(present, self._clock())
        model.listing = listing

    def _wanted(self, name: str, model: ModelState) -> list[int]:
        """Returns the versions that should serve, from the highest down."""
        if model.unloaded:
            return []
        late = {version for version in model.coming if self._is_late(name, model, version)}
        return repository.wanted(model.listing, self._setting(model), model.failures.reasons, model.serving, late)

    def _setting(self, model: ModelState) -> VersionsSetting:
        return model.listing.config.versions or self._config.repository.versions

    def _entry(self, name: str) -> ModelState:
        return self._models.setdefault(name, ModelState(unloaded=name in self._unloaded))

    def _due(self, name: str, model: ModelState) -> list[int]:
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

    def _candidate(self, name: str, model: ModelState, version: int) -> Candidate:
        return Candidate(name, version, model.listing.files[version], model.listing.config)

    def _is_late(self, name: str, model: ModelState, version: int) -> bool:
        if self._acceptance is None or version not in model.listing.files:
            return False
        return self._acceptance.is_late(self._candidate(name, model, version))

    def _awaited(self, name: str, model: ModelState) -> bool:
        """Returns whether a version is still coming that the first scan waits for."""
        return any(not self._is_late(name, model, version) for version in model.coming)

    def _deaths(self, name: str, model: ModelState) -> int:
        """Returns how many engines may have died of a version to load. Models with fewer deaths load first."""
        suspects = [_suspect(name, version, model.listing.files[version]) for version in model.coming]
        return max((self._suspects.get(suspect, 0) for suspect in suspects), default=0)

    def _follow(self, name: str, model: ModelState) -> None:
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

    def _file_of(self, name: str, model: ModelState, version: int) -> Path | None:
        """Returns the file to load a version from; None if it is still tried, or has failed."""
        if self._acceptance is None:
            return self._source.place(name, version).file
        candidate = self._candidate(name, model, version)
        try:
            return self._acceptance.ask(candidate)
        except BadModelFile as error:
            final = isinstance(error, Quarantined)
            model.failures.add(version, candidate.stamp, error.message, self._clock(), final=final)
            count_refused(name, version, error.message)
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
            model = self._entry(served.model)
            known = {**model.listing.files, served.version: served.stamp}
            model.listing = Listing(config=served.settings, files=known)
            self._load(served.model, model, served.version, Path(served.file))

    def _count_quarantined(self) -> None:
        quarantined = {(name, version) for name, model in self._models.items() for version in model.failures.final}
        for name, version in quarantined ^ self._quarantined:
            gauge = MODEL_QUARANTINED.labels(name, version, self._config.engine.device)
            gauge.set((name, version) in quarantined)
        self._quarantined = quarantined

    def _count_unready(self, table: Table) -> None:
        unready = {
            (row.model, row.version) for row in table.versions if row.state == "UNAVAILABLE" and not is_expected(row)
        }
        for name, version in unready ^ self._unready:
            count_unready(name, version, self._config.engine.device, unready=(name, version) in unready)
        self._unready = unready

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

    def _load(self, name: str, model: ModelState, version: int, file: Path) -> None:
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
            folder = self._source.keeping(name, version)
            loaded = load(file, stamp, self._config, model.listing.config, folder)
        except (BadConfig, BadModelFile, BadMetadata) as error:
            model.failures.add(version, stamp, error.message, self._clock())
            count_refused(name, version, error.message)
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

    def _report_kept(self, name: str, model: ModelState, version: int, reason: str) -> None:
        if version in model.serving:
            log.error("model %s version %d stays as it was loaded: %s", name, version, cut(reason))

    def _retire(self, name: str, model: ModelState, wanted: Collection[int]) -> None:
        """Ends the service of all versions but the wanted ones."""
        for version in sorted(model.serving.difference(wanted)):
            self._mark(name, version, ready=False)
            log.info("model %s version %d no longer serves", name, version)
            model.serving.discard(version)

    def _mark(self, name: str, version: int, *, ready: bool) -> None:
        count_serving(name, version, self.versions[name, version], self._config.engine, ready=ready)

    def _report(self) -> None:
        table = self.table()
        self._count_unready(table)
        self._reporter.report(table)


def _suspect(name: str, version: int, stamp: Stamp) -> Suspect:
    text = hashlib.blake2b(msgspec.json.encode(stamp), digest_size=16).hexdigest()
    return Suspect(name, version, text)


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
