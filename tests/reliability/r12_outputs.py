"""R12: no wrong output of a network reaches a client."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from convoy.models.export.seal import sealed
from convoy.service.client.client import Client
from convoy.service.client.results import Classification, Segmentation, ServerError
from convoy.service.client.tensors import TensorClient
from tests.reliability import faults
from tests.reliability.injection import Board, environment
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import until
from tests.service import networks
from tests.service.running import Server

Call = Callable[["Callers"], str]  # returns how its answer is wrong; "" if it is right, or an error

_EXAMPLES = 25  # injections, of which one goes on until the example of the file is repeated, and ends the engine
_WIDE = (520, 512)  # pixels of an image whose outputs the network writes to the slot itself
_SMALL = (36, 40)


class Callers:
    """The clients of a server, and the right answers."""

    def __init__(self, target: str) -> None:
        self.images = Client(target, retry=False)
        self.tensors = TensorClient(target, 60)

    def close(self) -> None:
        self.images.close()
        self.tensors.__exit__()


def right(image: np.ndarray) -> np.ndarray:
    """The probabilities of `networks.classifier`."""
    logits = image.reshape(-1).astype(np.float32) @ networks.classifier_weights()
    exponentials = np.exp(logits - logits.max())
    found: np.ndarray = exponentials / exponentials.sum()
    return found


def _one(seed: int) -> Call:
    def call(callers: Callers) -> str:
        return _compare(callers.images.classify(grey(seed), "letters", top_k=networks.CLASSES), seed)

    return call


def _several(seeds: Sequence[int]) -> Call:
    def call(callers: Callers) -> str:
        answers = callers.images.classify_many([grey(seed) for seed in seeds], "letters", top_k=networks.CLASSES)
        return "".join(_compare(answer, seed) for answer, seed in zip(answers, seeds, strict=True))

    return call


def _tensor(seeds: Sequence[int]) -> Call:
    def call(callers: Callers) -> str:
        images = np.stack([grey(seed) for seed in seeds])[..., None]
        found = callers.tensors.infer("letters", "image", images, ["probabilities"])["probabilities"]
        expected = np.stack([right(grey(seed)) for seed in seeds])
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
            return f"tensors {seeds} got another answer"
        return ""

    return call


def _segment(seed: int, size: tuple[int, int]) -> Call:
    def call(callers: Callers) -> str:
        image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        answer = callers.images.segment(image, "colours", with_confidence=True)
        assert isinstance(answer, Segmentation)
        same = (answer.mask == image.argmax(2)).all() and (answer.confidence == image.max(2)).all()
        return "" if same else f"scene {seed} got another mask"

    return call


def _compare(answer: Classification | ServerError, seed: int) -> str:
    if isinstance(answer, ServerError):
        return "" if answer.reason == "RUN_FAILED" else f"image {seed}: {answer.reason}"
    found = np.zeros(networks.CLASSES, np.float32)
    for label in answer.labels:
        found[label.index] = label.probability
    same = np.allclose(found, right(grey(seed)), atol=1e-5)
    return "" if same else f"image {seed} got the answer {found.round(3).tolist()}"


def _burst(fault: str, chance: random.Random) -> list[Call]:
    """Calls at the same time, which a fault meets."""
    if fault in faults.UNWRITTEN:
        return [_segment(chance.randrange(1000), _WIDE)]
    if "mask" in fault or "label" in fault:
        return [_segment(chance.randrange(1000), _SMALL) for _ in range(chance.randint(1, 3))]

    def seeds() -> list[int]:
        return [chance.randrange(DISTINCT) for _ in range(chance.randint(1, 5))]

    kinds: list[Callable[[], Call]] = [
        lambda: _one(chance.randrange(DISTINCT)),
        lambda: _several(seeds()),
        lambda: _tensor(seeds()),
    ]
    return [chance.choice(kinds)() for _ in range(chance.randint(1, 6))]


@contextmanager
def _serving(root: Path, fault: Callable[[str, Board], None]) -> Iterator[tuple[Server, Board]]:
    networks.save_bytes(sealed(networks.classifier()), root / "models", "letters")
    networks.save(networks.segmenter(), root / "models", "colours")
    board = Board(root / "board")
    settings = ["server.lame_duck_seconds=0", "engine.check_seconds=0.1", "server.frontends=1"]
    with Server(root / "models", settings, environment=environment(fault, board)) as server:
        yield server, board


def _ask(callers: Callers, threads: ThreadPoolExecutor, calls: Sequence[Call]) -> list[str]:
    """Returns what is wrong with the answers."""
    wrong = []
    for done in [threads.submit(call, callers) for call in calls]:
        try:
            wrong.append(done.result())
        except ServerError as error:
            wrong.append("" if error.reason == "RUN_FAILED" else f"{error.reason}: {error.message}")
    return [reason for reason in wrong if reason]


def _until_it_is_found(server: Server, board: Board) -> str:
    """Spoils all answers, until the engine finds it by the example in the file. Returns what went wrong."""
    seen, restarts = len(server.log), server.total("convoy_engine_restarts_total")
    board.cells[faults.LASTING] = faults.NAMES.index("other classes")
    try:
        server.wait_for_log("the engine cannot continue: model letters version 1: its example", after=seen)
    except AssertionError as error:
        return str(error)
    finally:
        board.cells[faults.LASTING] = 0
    # Also twice: the next engine may have found the same before this process saw the line.
    if not until(lambda: server.total("convoy_engine_restarts_total") > restarts):
        return "the engine was not replaced"
    return ""


def _fault(trial: int, seed: int) -> str:
    """Returns which fault is injected. After a run that did not write its outputs, an engine no longer lets the network
    write to slots: so each engine meets one."""
    if trial % _EXAMPLES == _EXAMPLES - 2:
        return faults.UNWRITTEN[(trial // _EXAMPLES + seed) % len(faults.UNWRITTEN)]
    return list(faults.FAULTS)[(trial + seed) % len(faults.FAULTS)]


def run(trials: int, seed: int) -> Tally:
    """Injects faults of all kinds in turn, in random company."""
    count, chance = Count(), random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        _serving(Path(folder), faults.outputs) as (server, board),
        ThreadPoolExecutor(6) as threads,
    ):
        callers = Callers(server.grpc)
        for trial in range(trials):
            if trial % _EXAMPLES == _EXAMPLES - 1:
                wrong = [reason for reason in [_until_it_is_found(server, board)] if reason]
                wrong = wrong or _ask(callers, threads, [_one(chance.randrange(DISTINCT)) for _ in range(3)])
                fault = "wrong answers all the time"
            else:
                fault = _fault(trial, seed)
                board.cells[faults.ORDER], done = faults.NAMES.index(fault), board.cells[faults.DONE]
                wrong = _ask(callers, threads, _burst(fault, chance))
                if board.cells[faults.DONE] == done:
                    wrong.append("the fault did not meet a run")
                    board.cells[faults.ORDER] = 0
            if wrong:
                count.bad(f"seed {seed}, injection {trial} ({fault}): {'; '.join(wrong[:3])}")
            else:
                count.good()
        callers.close()
    return count.tally()


def control(seed: int) -> Tally:
    """Answers that look right, and rows in one another's slots: whoever knows the right answer finds both."""
    count, chance = Count(), random.Random(seed)
    for fault in (faults.outputs, faults.scatter):
        found = 0
        with (
            tempfile.TemporaryDirectory() as folder,
            _serving(Path(folder), fault) as (server, board),
            ThreadPoolExecutor(6) as threads,
        ):
            callers = Callers(server.grpc)
            for _ in range(8):
                board.cells[faults.ORDER] = faults.NAMES.index("other classes")
                found += bool(_ask(callers, threads, [_several([chance.randrange(DISTINCT), 7, 8, 9])]))
            callers.close()
        if not found:
            return Tally(8)
        count.bad(f"{fault.__name__}: {found} of 8")
    return count.tally()


PROBE = Probe(
    number="R12",
    what="No wrong output of a network reaches a client: NaN, infinity, logits, another shape, type or count, a class "
    "without a label, memory that a run did not write, answers that the example in the file contradicts.",
    unit="wrong outputs injected",
    wanted=1000,
    chunk=200,
    run=run,
    control=control,
)
