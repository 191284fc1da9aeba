"""A saturating load: callers on one loop in a thread, each of whose answers is checked by what the image must give."""

import asyncio
import bisect
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np

from convoy.service.client.aio import AsyncClient
from convoy.service.client.results import Classification
from tests.reliability.neighbours import DISTINCT, best, grey
from tests.service.networks import CLASSES, classifier_weights

Ask = Callable[[Any, int], Awaitable[None]]  # one call, the second argument says which; raises unless it is right
Connect = Callable[[], AbstractAsyncContextManager[Any]]

_TIMEOUT = 90.0  # seconds, after which a call counts as lost
_CLOSE = 1e-4  # of a probability


@cache
def expected(image: int) -> tuple[int, float]:
    """The class that `networks.classifier` gives an image, and its probability."""
    logits = (grey(image).reshape(-1).astype(np.float32) @ classifier_weights())[:CLASSES]
    odds = np.exp(logits - logits.max())
    return best(grey(image)), float(odds.max() / odds.sum())


def check(answer: Classification, image: int, shift: int = 0) -> None:
    """Raises AssertionError if this is another image's answer. `shift` is that of `networks.classifier`."""
    index, probability = expected(image)
    wanted = (index + shift) % CLASSES
    found = answer.labels[0]
    if found.index != wanted or abs(found.probability - probability) > _CLOSE:
        raise AssertionError(
            f"image {image} is of class {wanted} ({probability:.4f}), the server says {found.index} "
            f"({found.probability:.4f})"
        )


def asking(model: str = "letters", *, deadline: float | None = None) -> Ask:
    """Callers that ask this model for one image after another."""

    async def ask(client: AsyncClient, seed: int) -> None:
        check(await client.classify(grey(seed % DISTINCT), model, deadline=deadline), seed % DISTINCT)

    return ask


class Crowd:
    """Callers that send one call after another each, on one connection, while the block lasts.

    answered  calls with the right answer
    failed    what the others ended with; a wrong answer is an AssertionError, a lost one a TimeoutError
    ends      when each of the answered ones was answered, on the monotonic clock
    seconds   that each of them took
    """

    def __init__(
        self,
        target: str,
        ask: Ask | None = None,
        *,
        callers: int = 24,
        retry: bool = False,
        connect: Connect | None = None,
    ) -> None:
        self.ends: list[float] = []
        self.seconds: list[float] = []
        self.failed: list[BaseException] = []
        self._connect: Connect = connect or (lambda: AsyncClient(target, retry=retry))
        self._ask = ask or asking()
        self._callers = callers
        self._waiting: set[int] = set()
        self._calls = 0
        self._going = threading.Event()
        self._going.set()
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @property
    def answered(self) -> int:
        return len(self.ends)

    @property
    def callers(self) -> int:
        return self._callers

    @property
    def waiting(self) -> int:
        """Calls without an answer."""
        return len(self._waiting)

    @property
    def _ended(self) -> int:
        return len(self.ends) + len(self.failed)

    def pause(self) -> None:
        """Begins no more calls until `resume`."""
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def settle(self, seconds: float = _TIMEOUT) -> bool:
        """Waits until every call of now has ended; returns whether they have."""
        now = self._waiting.copy()
        return _until(lambda: not now & self._waiting.copy(), seconds)

    def progress(self, more: int = 0, seconds: float = _TIMEOUT) -> bool:
        """Waits until so many further calls have ended, of each caller one by default; returns whether they have."""
        wanted = self._ended + (more or self._callers)
        return _until(lambda: self._ended >= wanted or not self._going.is_set(), seconds)

    def rate(self, begin: float, end: float) -> float:
        """Answers a second from one moment to another."""
        return (bisect.bisect(self.ends, end) - bisect.bisect(self.ends, begin)) / (end - begin)

    async def _run(self) -> None:
        async with self._connect() as client:
            await asyncio.gather(*(self._call(client) for _ in range(self._callers)))

    async def _call(self, client: Any) -> None:
        while not self._over:
            if not self._going.is_set():
                await asyncio.sleep(0.002)
                continue
            self._calls += 1
            number = self._calls
            began = time.monotonic()
            self._waiting.add(number)
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await self._ask(client, number)
            except Exception as error:
                self.failed.append(error)
                await asyncio.sleep(0.01)  # a server that refuses at once is no reason to ask in a tight loop
            else:
                end = time.monotonic()
                self.seconds.append(end - began)
                self.ends.append(end)
            finally:
                self._waiting.discard(number)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join()


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    turn = threading.Event()
    while not holds():
        if time.monotonic() > deadline:
            return False
        turn.wait(0.005)
    return True


def describe(errors: list[BaseException], most: int = 3) -> str:
    """The first few errors, for an example."""
    return "; ".join(f"{type(error).__name__}: {error}"[:200] for error in errors[:most])
