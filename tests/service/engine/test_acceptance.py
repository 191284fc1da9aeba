"""Which files may be loaded: copies of those that a trial has survived, each content tried once."""

import threading
from pathlib import Path

import pytest

from convoy.service.config import Config, ModelConfig
from convoy.service.engine.acceptance import PATIENCE, Acceptance, Candidate, Folders, Quarantined, Served
from convoy.service.engine.file_trials import FileTrials, Job, Verdict
from convoy.service.errors import BadModelFile
from convoy.service.repository import scan
from convoy.service.sources import Source
from tests.service import networks


class Recorded(FileTrials):
    """FileTrials whose end the test decides: they record what was tried."""

    def __init__(self) -> None:
        self.tried: list[bytes] = []
        self.verdict = Verdict(holds="always")
        self.goes_on = threading.Event()
        self.goes_on.set()

    def load(self, job: Job) -> Verdict:
        self.tried.append(Path(job.file).read_bytes())
        assert self.goes_on.wait(10)
        return self.verdict


class Case:
    """A repository, and one acceptance after the other that look at it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        self.folders = Folders(folder / "store", 0, folder / "cache")
        self.trials = Recorded()
        self.now = 0.0
        self.changed = threading.Semaphore(0)
        self.file = networks.save(networks.doubler(), self.root, "doubler")

    def fresh(self) -> Acceptance:
        """As another engine of the server has it."""
        source = Source(self.root)
        return Acceptance(source, Config(), self.trials, self.folders, self.changed.release, clock=lambda: self.now)

    def candidate(self) -> Candidate:
        listing = scan(self.root)["doubler"]
        return Candidate("doubler", 1, listing.files[1], listing.config)

    def answer(self, acceptance: Acceptance) -> Path:
        """Asks until the trial is over."""
        candidate = self.candidate()
        found = acceptance.ask(candidate)
        if found is None:
            assert self.changed.acquire(timeout=10)
            found = acceptance.ask(candidate)
        assert found is not None
        return found


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_accepted_file_is_a_copy_of_what_was_tried(case: Case) -> None:
    copy = case.answer(case.fresh())
    assert case.trials.tried == [case.file.read_bytes()] == [copy.read_bytes()]
    assert copy.parts[-3:] == ("doubler", "1", "model.onnx")
    content = copy.read_bytes()
    case.file.write_bytes(b"garbled in place")
    assert copy.read_bytes() == content


def test_content_is_tried_once_by_all_engines_and_servers(case: Case, tmp_path: Path) -> None:
    case.answer(case.fresh())
    case.answer(case.fresh())
    case.folders = case.folders._replace(store=tmp_path / "another server")
    case.answer(case.fresh())
    assert len(case.trials.tried) == 1


def test_verdict_that_the_machine_may_have_caused_ends_with_the_server(case: Case, tmp_path: Path) -> None:
    case.trials.verdict = Verdict("it did not end", "server")
    for _ in range(2):
        with pytest.raises(Quarantined, match="it did not end; it is tried again when it changes"):
            case.answer(case.fresh())
    assert len(case.trials.tried) == 1
    case.folders = case.folders._replace(store=tmp_path / "another server")
    with pytest.raises(Quarantined):
        case.answer(case.fresh())
    assert len(case.trials.tried) == 2


def test_error_that_may_pass_is_tried_again(case: Case) -> None:
    acceptance = case.fresh()
    case.trials.verdict = Verdict("lack of memory")
    with pytest.raises(BadModelFile) as caught:
        case.answer(acceptance)
    assert not isinstance(caught.value, Quarantined)
    case.trials.verdict = Verdict(holds="always")
    assert case.answer(acceptance)


def test_another_content_is_tried(case: Case) -> None:
    acceptance = case.fresh()
    case.answer(acceptance)
    case.file.write_bytes(b"another")
    case.answer(acceptance)
    assert case.trials.tried[1:] == [b"another"]


def test_trial_that_lasts_is_late_and_its_end_is_reported(case: Case) -> None:
    acceptance = case.fresh()
    case.trials.goes_on.clear()
    candidate = case.candidate()
    assert acceptance.ask(candidate) is None
    assert not acceptance.is_late(candidate)
    case.now = PATIENCE
    assert acceptance.is_late(candidate)
    assert acceptance.ask(candidate) is None
    case.trials.goes_on.set()
    assert case.changed.acquire(timeout=10)
    assert acceptance.ask(candidate)
    assert not acceptance.is_late(candidate)


def test_file_that_changed_after_the_scan_is_not_accepted(case: Case) -> None:
    acceptance = case.fresh()
    candidate = case.candidate()
    case.file.write_bytes(b"another")
    assert acceptance.ask(candidate) is None
    assert case.changed.acquire(timeout=10)
    with pytest.raises(BadModelFile, match="changed while it was read"):
        acceptance.ask(candidate)
    assert case.trials.tried == []


def test_copies_that_nothing_uses_are_removed(case: Case) -> None:
    acceptance = case.fresh()
    first, before = case.answer(acceptance), case.candidate()
    case.file.write_bytes(b"another")
    second, after = case.answer(acceptance), case.candidate()
    served = [Served(*before[:3], ModelConfig(), str(first))]
    acceptance.keep({after}, served)
    assert (first.exists(), second.exists()) == (True, True)
    acceptance.keep({after}, [])
    assert (first.exists(), second.exists()) == (False, True)


def test_what_serves_is_known_to_the_next_engine(case: Case) -> None:
    acceptance = case.fresh()
    served = [Served("doubler", 1, case.candidate().stamp, ModelConfig(max_batch_size=3), "copy")]
    assert acceptance.served_before() == []
    acceptance.record(served)
    assert case.fresh().served_before() == served
