"""Requests by the raw client, which takes a fraction of the CPU time of grpcio's, in a process of its own.

`python -m tests.performance.raw_load` reads what to send and, line by line, trials; it answers each with a line.
"""

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Literal, Self

import grpc
import msgspec
import uvloop

from convoy.service.bench.http2 import Call, Session
from convoy.service.bench.raw_client import RawClient, framed, library, unframed
from tests.performance import load
from tests.performance.load import Answers

ClientName = Literal["grpcio", "raw"]
Send = Callable[[int, int], Answers]  # so many callers, so many requests
REQUESTS: dict[ClientName, int] = {"grpcio": 1200, "raw": 4800}  # of a trial: tenths of a second, or a second
_DEADLINE = 60.0  # seconds
_STEP = 200  # connections opened at once
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Work(msgspec.Struct):
    """What a process sends. `body` is in base64."""

    target: str
    method: str
    body: bytes
    connections: int


class Trial(msgspec.Struct):
    """So many callers that send so many requests; or one request over each of so many more connections."""

    callers: int = 0
    requests: int = 0
    connections: int = 0


class Found(msgspec.Struct):
    """What became of the requests of a trial. `codes` are those of refusals."""

    latencies: list[float]
    due: list[float]
    codes: list[int]
    seconds: float
    last: bytes


class RawLoad:
    """A process that sends the same request again and again, over the same connections, in trial after trial.

    Caller n uses connection n modulo `connections`.
    """

    def __init__(self, target: str, method: str, body: bytes, connections: int = 1) -> None:
        command = [sys.executable, "-m", "tests.performance.raw_load"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._write(Work(target, method, body, connections))

    def closed(self, callers: int, requests: int) -> Answers:
        """Callers each of whom sends the next request after the answer."""
        found = self._ask(Trial(callers=callers, requests=requests))
        return Answers(found.latencies, found.due, [_CODES[code] for code in found.codes], found.seconds, found.last)

    def open(self, connections: int) -> None:
        """Opens so many more connections, sends one request over each, and keeps them. Raises RuntimeError."""
        found = self._ask(Trial(connections=connections))
        if len(found.latencies) < connections:
            raise RuntimeError(f"{len(found.latencies)} of {connections} connections were answered: {found.codes[:3]}")

    def _ask(self, trial: Trial) -> Found:
        self._write(trial)
        assert self.process.stdout is not None
        return msgspec.json.decode(self.process.stdout.readline(), type=Found)

    def _write(self, what: msgspec.Struct) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(what) + b"\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def sending(client: ClientName, target: str, method: str, body: bytes, connections: int = 1) -> Iterator[Send]:
    """What sends a request by one of the clients. grpcio's has one connection, a new one for each trial."""
    if client == "grpcio":
        yield partial(load.closed, target, method, body)
        return
    with RawLoad(target, method, body, connections) as raw:
        yield raw.closed


class _Sender:
    """The clients of this process."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._session = Session(library())
        self._clients = [self._client() for _ in range(work.connections)]
        self._head = self._clients[0].head(work.method)
        self._body = framed(work.body)

    async def run(self, trial: Trial) -> Found:
        begin = time.perf_counter()
        found = Found([], [], [], 0.0, b"")
        if trial.connections:
            await self._open(trial.connections, begin, found)
        else:
            left = iter(range(trial.requests))
            callers = (self._clients[number % len(self._clients)] for number in range(trial.callers))
            await asyncio.gather(*(self._caller(client, left, begin, found) for client in callers))
        found.seconds = time.perf_counter() - begin
        return found

    async def _open(self, connections: int, begin: float, found: Found) -> None:
        for first in range(0, connections, _STEP):
            clients = [self._client() for _ in range(min(_STEP, connections - first))]
            await asyncio.gather(*(self._caller(client, iter(range(1)), begin, found) for client in clients))
            self._clients += clients

    async def _caller(self, client: RawClient, left: Iterator[int], begin: float, found: Found) -> None:
        for _ in left:
            start = time.perf_counter()
            call: Call = await client.call(self._head, self._body)
            if call.status:
                found.codes.append(call.status)
            else:
                found.latencies.append(time.perf_counter() - start)
                found.due.append(start - begin)
                found.last = unframed(call.pieces)

    def _client(self) -> RawClient:
        return RawClient(self._work.target, _DEADLINE, self._session)


async def _serve() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lines = partial(asyncio.get_running_loop().run_in_executor, None, sys.stdin.buffer.readline)
    sender = _Sender(msgspec.json.decode(await lines(), type=Work))
    while line := await lines():
        found = await sender.run(msgspec.json.decode(line, type=Trial))
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
