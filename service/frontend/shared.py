"""Answers that take long to compute, shared by all who ask."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_REST = 20  # times as long as a computation took, until the next one begins


class Shared(Generic[T]):
    """One computation at a time, in a thread, for all who ask before it begins. So the answer is never older than the
    question, and however many ask, they take a twentieth of a core. One writer: the front end's loop.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._next: asyncio.Task[T] | None = None  # not yet begun
        self._busy = asyncio.Lock()
        self._not_before = 0.0  # seconds of the loop's clock

    async def get(self) -> T:
        """Returns what is computed from now on. Raises what the computation raises."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> T:
        loop = asyncio.get_running_loop()
        async with self._busy:
            await asyncio.sleep(max(0.0, self._not_before - loop.time()))
            self._next = None  # later callers need a newer answer
            began = loop.time()
            try:
                return await asyncio.to_thread(self._compute)
            finally:
                self._not_before = loop.time() + _REST * (loop.time() - began)
