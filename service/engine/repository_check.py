"""Tries every version of every model as an engine would, without serving any: for `convoy check`."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from convoy.service import repository
from convoy.service.config import Config, VersionsSetting
from convoy.service.engine.acceptance import Acceptance, Candidate, Folders
from convoy.service.engine.check_apart import Checked, Outcome
from convoy.service.engine.file_trials import FileTrials
from convoy.service.engine.session_builder import Loaded, load
from convoy.service.engine.version_states import cut, limitations
from convoy.service.errors import BadConfig, BadMetadata, BadModelFile
from convoy.service.repository import MAX_NAME, MODEL_FILE, Listing
from convoy.service.sources import Source

log = logging.getLogger(__name__)


def check(
    source: Source,
    config: Config,
    trials: FileTrials,
    folders: Folders,
    known: Mapping[tuple[str, int], Checked],
    begin: Callable[[str, int], None],
    tell: Callable[[Checked], None],
) -> Outcome:
    """Tries all versions that are not `known`, one after the other. Calls `begin` with the model and version before
    each, and `tell` after it. Raises OSError if the repository cannot be read."""
    changed = threading.Semaphore(0)
    acceptance = Acceptance(source, config, trials, folders, changed.release)
    checked: list[Checked] = []
    warnings = []
    if source.root is not None:
        for name in repository.misnamed(source.root):
            warnings.append(f"folder {name!r} is ignored: a model's name is 1 to {MAX_NAME} of a-z, 0-9, - and _")
        for name in sorted(source.single.keys() & repository.scan(source.root, trials.settings).keys()):
            warnings.append(f"model {name} of the repository is not served: another one is given by that name")
    for name, listing in sorted(source.scan(trials.settings).items()):
        if listing.note:
            warnings.append(f"model {name}: {listing.note}")
        setting = listing.config.versions or config.repository.versions
        if not listing.files and not listing.missing and not listing.problem:
            warnings.append(f"model {name}: {listing.empty}")
            continue
        tried = []
        for version in _versions(listing):
            one = known.get((name, version))
            if one is None:
                begin(name, version)
                one = _tried(name, version, listing, acceptance, source, config, changed)
                tell(one)
            tried.append(one)
        checked += _with_states(tried, listing, setting)
        warnings += [f"model {name}: {text}" for text in _left_out(checked, name, listing, setting)]
    return Outcome(tuple(checked), tuple(warnings))


def _versions(listing: Listing) -> list[int]:
    return sorted({*listing.files, *listing.missing}, reverse=True) or [0]


def _tried(
    name: str,
    version: int,
    listing: Listing,
    acceptance: Acceptance,
    source: Source,
    config: Config,
    changed: threading.Semaphore,
) -> Checked:
    began = time.monotonic()
    reason = listing.problem
    if not reason and version not in listing.files:
        reason = f"{MODEL_FILE} is missing" if version not in listing.unreadable else "its folder cannot be read"
    loaded = None
    if not reason:
        candidate = Candidate(name, version, listing.files[version], listing.config)
        try:
            loaded = _loaded(candidate, acceptance, source, config, changed)
        except (BadConfig, BadModelFile, BadMetadata) as error:
            reason = error.message
        except Exception:  # no file, whatever its content, ends the check of the others
            log.exception("model %s version %d cannot be loaded", name, version)
            reason = "loading it failed in a way that is in the log"
    seconds = round(time.monotonic() - began, 3)
    if loaded is None:
        return Checked(model=name, version=version, state="fails", reason=cut(reason), seconds=seconds)
    return Checked(
        model=name,
        version=version,
        state="serves",
        reason=cut("; ".join(limitations(loaded.session))),
        seconds=seconds,
        provider=loaded.session.provider,
        max_batch_size=loaded.limits.max_batch_size,
    )


def _loaded(
    candidate: Candidate, acceptance: Acceptance, source: Source, config: Config, changed: threading.Semaphore
) -> Loaded:
    while (file := acceptance.ask(candidate)) is None:
        changed.acquire()
    folder = source.keeping(candidate.model, candidate.version)
    try:
        return load(file, candidate.stamp, config, candidate.settings, folder)
    finally:
        acceptance.keep((), ())  # copies may be large


def _with_states(tried: list[Checked], listing: Listing, setting: VersionsSetting) -> list[Checked]:
    """With the state of those that would not serve because others do."""
    failed = {(each.version, listing.files.get(each.version)) for each in tried if each.state == "fails"}
    known: Mapping[tuple[int, repository.Stamp], str] = {
        (version, stamp): "" for version, stamp in failed if stamp is not None
    }
    serving = repository.wanted(listing, setting, known)
    return [
        each if each.state == "fails" or each.version in serving else msgspec.structs.replace(each, state="left out")
        for each in tried
    ]


def _left_out(checked: list[Checked], name: str, listing: Listing, setting: VersionsSetting) -> Iterator[str]:
    words = f"versions = {list(setting) if isinstance(setting, tuple) else repr(setting)}"
    out = sorted(each.version for each in checked if each.model == name and each.state == "left out")
    if out:
        numbers = ", ".join(map(str, out))
        yield f"{words} leaves out version{'s' if len(out) > 1 else ''} {numbers}"
    if isinstance(setting, tuple):
        for version in sorted(set(setting) - set(_versions(listing))):
            yield f"{words} names version {version}, which is not there"
