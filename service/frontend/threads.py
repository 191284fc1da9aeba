"""Work in threads that reads or writes a slot: it has to be over before the slot ends."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """The result of `work`. Where the caller goes meanwhile, it is still waited for before the cancellation goes on."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
