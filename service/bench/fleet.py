"""Runs a plan in one process or in several, and adds up their findings. Owns the processes that it starts."""

import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import msgspec

from convoy.service.bench import client, findings
from convoy.service.bench.findings import Findings
from convoy.service.bench.plan import Plan, Share
from convoy.service.errors import ConvoyError

Process = subprocess.Popen[bytes]
_PREPARING = 120.0  # seconds for imports and for building the requests
_SLACK = 30.0  # seconds beyond the last deadline: a client short of CPU ends later
_LEAD = 0.1  # seconds between announcing the start time to the clients and that time


class ClientFailed(ConvoyError):
    """A client process ended without findings."""

    reason = "CLIENT_FAILED"


def run(plan: Plan) -> Findings:
    """Blocks until every request is answered or its time is up. Raises ClientFailed."""
    if plan.processes == 1:
        return client.run(plan, 0, time.monotonic)
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(plan, share)) for share in range(plan.processes)]
        with _killed_after(_PREPARING, processes):
            _lines(processes)
        begin = time.monotonic() + _LEAD
        for process in processes:
            _send(process, msgspec.json.encode(begin))
        with _killed_after(plan.warm_up + plan.load.seconds + plan.deadline + _SLACK, processes):
            total, *others = [findings.decode(line) for line in _lines(processes)]
    for other in others:
        total.add(other)
    return total


@contextmanager
def _process(plan: Plan, share: int) -> Iterator[Process]:
    # exec, not fork: gRPC's threads do not survive a fork. Its own session protects it from a terminal's Ctrl-C.
    process = subprocess.Popen(
        [sys.executable, "-m", "convoy.service.bench.client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _send(process, msgspec.json.encode(Share(plan, share)))
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # the last line written may be unread
                pipe.close()


@contextmanager
def _killed_after(seconds: float, processes: Sequence[Process]) -> Iterator[None]:
    """Kill the processes after `seconds`; their readers then reach end of file."""
    timer = threading.Timer(seconds, _kill, [processes])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(processes: Sequence[Process]) -> None:
    for process in processes:
        process.kill()


def _send(process: Process, line: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise _failed(process) from None


def _lines(processes: Sequence[Process]) -> list[bytes]:
    """One line from each process, in order. A process that ends without one is noticed at once."""
    lines: dict[Process, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for process in processes:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, process)
        while len(lines) < len(processes):
            for key, _ in selector.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if not line.endswith(b"\n"):
                    raise _failed(key.data)
                lines[key.data] = line
                selector.unregister(key.fileobj)
    return [lines[process] for process in processes]


def _failed(process: Process) -> ClientFailed:
    return ClientFailed(f"client process {process.pid} ended with exit code {process.wait()}, without findings")
