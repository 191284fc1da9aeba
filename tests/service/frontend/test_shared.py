"""A question that takes long to answer is computed once for all who ask."""

import asyncio
import itertools

import pytest

from convoy.service.frontend import shared
from convoy.service.frontend.shared import Shared


def test_all_who_ask_together_share_one_computation_and_later_ones_get_a_newer() -> None:
    numbers = itertools.count()

    async def play() -> list[int]:
        asked = Shared(lambda: next(numbers))
        together = await asyncio.gather(*(asked.get() for _ in range(50)))
        return [*together, await asked.get()]

    assert asyncio.run(play()) == [0] * 50 + [1]


def test_whoever_asks_during_a_computation_gets_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_REST", 0)

    async def play() -> None:
        loop, began, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        numbers = itertools.count()

        def compute() -> int:
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return next(numbers)

        asked = Shared(compute)
        first = asyncio.ensure_future(asked.get())
        await began.wait()
        second = asyncio.ensure_future(asked.get())
        third = asyncio.ensure_future(asked.get())
        await asyncio.sleep(0)
        assert not second.done()
        go_on.set()
        assert [await first, await second, await third] == [0, 1, 1]

    asyncio.run(play())


def test_computations_rest_in_proportion_to_their_time() -> None:
    async def play() -> float:
        loop = asyncio.get_running_loop()
        spans: list[tuple[float, float]] = []

        def compute() -> None:
            began, until = loop.time(), loop.time() + 0.01
            while loop.time() < until:
                pass
            spans.append((began, loop.time()))

        asked = Shared(compute)
        for _ in range(4):
            await asked.get()
        gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(spans)]
        return min(gaps)

    assert asyncio.run(play()) >= 0.19


def test_failure_reaches_all_who_asked_and_ends_with_them() -> None:
    outcomes = iter([ValueError("no figures"), None])

    def compute() -> str:
        if error := next(outcomes):
            raise error
        return "figures"

    async def play() -> list[object]:
        asked = Shared(compute)
        failed = await asyncio.gather(*(asked.get() for _ in range(3)), return_exceptions=True)
        return [*failed, await asked.get()]

    *failed, fine = asyncio.run(play())
    assert [str(one) for one in failed] == ["no figures"] * 3
    assert fine == "figures"


def test_caller_that_leaves_takes_the_answer_from_nobody() -> None:
    async def play() -> str:
        asked = Shared(lambda: "figures")
        leaving = asyncio.ensure_future(asked.get())
        staying = asyncio.ensure_future(asked.get())
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(play()) == "figures"
