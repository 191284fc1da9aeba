"""Requests of raw bytes to any method: as many at once as are told, or at given times."""

import asyncio
import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat

import grpc

_PATIENCE = 60.0  # seconds


@dataclass
class Answers:
    """What became of requests: seconds from the intended time to the answer, and that time; refusals by gRPC status."""

    latencies: list[float] = field(default_factory=list)
    due: list[float] = field(default_factory=list)  # of those answered, seconds from the start
    errors: list[grpc.StatusCode] = field(default_factory=list)
    seconds: float = 0.0
    last: bytes = b""  # answer, of the raw client


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Python's collector of cycles would stop all callers for tenths of a second, in a process as large as this."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _closed(target: str, method: str, requests: Iterable[bytes], callers: int, deadline: float) -> Answers:
    found = Answers()
    left = iter(requests)
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(method)

        async def caller() -> None:
            for request in left:
                start = time.perf_counter()
                await _one(call, request, deadline, start, begin, found)

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        found.seconds = time.perf_counter() - begin
    return found


async def _open(target: str, method: str, request: bytes, times: Sequence[float], deadline: float) -> Answers:
    found = Answers()
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(method)
        await _one(call, request, 60.0, time.perf_counter(), 0.0, Answers())
        begin = time.perf_counter()
        tasks = []
        for at in times:
            if (wait := begin + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.ensure_future(_one(call, request, deadline, begin + at, begin, found)))
        await asyncio.gather(*tasks)
        found.seconds = time.perf_counter() - begin
    return found


async def _streamed(target: str, method: str, request: bytes, window: int, requests: int) -> Answers:
    found = Answers()
    room = asyncio.Semaphore(window)
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(method)()

        async def send() -> None:
            for _ in range(requests):
                await room.acquire()
                await call.write(request)
            await call.done_writing()

        begin = time.perf_counter()
        sending = asyncio.ensure_future(send())
        while (await call.read()) is not grpc.aio.EOF:
            room.release()
            found.latencies.append(time.perf_counter() - begin)
        await sending
        found.seconds = time.perf_counter() - begin
    return found


async def _one(
    call: grpc.aio.UnaryUnaryMultiCallable, request: bytes, deadline: float, due: float, begin: float, found: Answers
) -> None:
    try:
        await call(request, timeout=deadline)
        found.latencies.append(time.perf_counter() - due)
        found.due.append(due - begin)
    except grpc.aio.AioRpcError as error:
        found.errors.append(error.code())


def closed(target: str, method: str, request: bytes, callers: int, requests: int, deadline: float = 60.0) -> Answers:
    """So many callers, each of whom sends the next request after the answer."""
    return asyncio.run(_closed(target, method, repeat(request, requests), callers, deadline))


def each(target: str, method: str, requests: Iterable[bytes], callers: int) -> Answers:
    """Each of these requests, by so many callers."""
    return asyncio.run(_closed(target, method, requests, callers, _PATIENCE))


def at_times(target: str, method: str, request: bytes, times: Sequence[float], deadline: float) -> Answers:
    """Each request at its time, in seconds from the start, whatever became of those before."""
    with _undisturbed():
        return asyncio.run(_open(target, method, request, times, deadline))


def streamed(target: str, method: str, request: bytes, window: int, requests: int) -> Answers:
    """So many requests over one stream, of which `window` are under way at a time. Latencies are from its start.
    Raises TimeoutError where they are not answered within a minute."""
    return asyncio.run(asyncio.wait_for(_streamed(target, method, request, window, requests), _PATIENCE))
