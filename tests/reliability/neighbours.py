"""Good callers beside whatever happens: each of their answers is checked, and each failure kept."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.service.networks import CLASSES, SIDE, classifier_weights

DISTINCT = 400  # of these images none has two equal best logits

Ask = Callable[[Client, int], None]  # one call, the second argument says which; raises unless the answer is right


def grey(seed: int) -> np.ndarray:
    """(8, 8) uint8, random."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), np.uint8)


def best(image: np.ndarray) -> int:
    """The class that `networks.classifier` gives it."""
    return int((image.reshape(-1).astype(np.float32) @ classifier_weights())[:CLASSES].argmax())


def classify(client: Client, seed: int, model: str = "letters") -> None:
    """Asks for one image. Raises AssertionError if the answer is another image's, ServerError if there is none."""
    image = grey(seed % DISTINCT)
    index = client.classify(image, model).labels[0].index
    assert index == best(image), f"image {seed % DISTINCT} is of class {best(image)}, the server says {index}"


class Neighbours:
    """Callers in threads, one call after another each, while the block lasts.

    answered  calls with the right answer
    failed    what the others ended with; a wrong answer is an AssertionError
    longest   seconds of the longest call
    """

    def __init__(
        self, target: str, ask: Ask = classify, *, callers: int = 2, retry: bool = False, repeats: bool = False
    ) -> None:
        """`repeats`: a call that is cancelled is no failure, as its caller may repeat it."""
        self.answered = 0
        self.failed: list[Exception] = []
        self.longest = 0.0
        self._client = Client(target, retry=retry)
        self._repeats = repeats
        self._ask = ask
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._callers = callers
        self._ended = [0] * callers  # calls of each caller
        self._threads: ThreadPoolExecutor | None = None

    def settle(self, seconds: float = 60.0) -> bool:
        """Waits until every call of now has ended; returns whether they have."""
        now, until = self._ended.copy(), time.monotonic() + seconds
        while any(before == after for before, after in zip(now, self._ended, strict=True)):
            if time.monotonic() > until:
                return False
            threading.Event().wait(0.005)
        return True

    def _call(self, caller: int) -> None:
        seed = caller
        while not self._end.is_set():
            seed += 7
            began = time.monotonic()
            failed: Exception | None = None
            answered = True
            try:
                self._ask(self._client, seed)
            except Exception as error:
                # A server of grpcio that ends cancels some of its calls, which a caller may then repeat itself.
                answered = False
                if not (self._repeats and isinstance(error, ServerError) and error.code is grpc.StatusCode.CANCELLED):
                    failed = error
            with self._lock:
                self._ended[caller] += 1
                self.longest = max(self.longest, time.monotonic() - began)
                self.answered += answered
                if failed is not None:
                    self.failed.append(failed)

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self._callers)
        for caller in range(self._callers):
            self._threads.submit(self._call, caller)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        assert self._threads is not None
        self._threads.shutdown()
        self._client.close()
