"""Several servers and what stands in front of them, as real processes, and callers that send at a rate."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pytest

from convoy.service.client.aio import AsyncClient
from tests.service.running import START_SECONDS, Server
from tools.ports import free_ports

DEPLOY = Path(__file__).parents[2] / "deploy"
RUN_MS = 20  # of one image: a server answers 50 a second, however fast its machine is
SMALL, LARGE = 20_000, 1_500_000  # bytes of a request

Connect = Callable[[], AbstractAsyncContextManager[AsyncClient]]

_SHARE = 0.8  # of what all can answer, that callers send
_TIMEOUT = 90.0  # seconds, after which a call counts as lost
_SETTINGS = (
    f"engine.sleep_ms=[0, {RUN_MS}]",
    "batching.max_batch_size=4",
    "limits.max_requests=4096",
    "batching.max_queue=4096",
    "server.lame_duck_seconds=4",  # several checks of each proxy, on a machine that is late with some
    "server.heartbeat_seconds=0",  # an engine may stand still: see kill_with_a_call
)


def program(name: str) -> str:
    """The path of a program. Skips the test if there is none."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join((beside, os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Fleet:
    """Servers at addresses of their own (127.0.0.2, 127.0.0.3, ...) with the same two ports."""

    def __init__(self, repository: Path, count: int = 3, settings: Sequence[str] = ()) -> None:
        self.hosts = [f"127.0.0.{2 + place}" for place in range(count)]
        self.port, self.http_port = free_ports(2)
        self._repository = repository
        self._settings = (*_SETTINGS, *settings)
        self.servers: list[Server] = []

    def __enter__(self) -> Self:
        try:
            self.servers = [self._start(host, wait=False) for host in self.hosts]
            for server in self.servers:
                server.wait_for_log("ready")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
        for server in self.servers:
            server.stop()

    @property
    def addresses(self) -> list[str]:
        return [f"{host}:{self.port}" for host in self.hosts]

    def drain(self, place: int) -> None:
        """SIGTERM, and another server in its place once it has ended. It must have answered all it had accepted."""
        place %= len(self.servers)
        assert self.servers[place].stop(seconds=60) == 0
        self.servers[place] = self._start(self.hosts[place])

    def kill(self, place: int) -> None:
        """SIGKILL for all processes of a server at once, as if its machine had ended, and another one in its place."""
        place %= len(self.servers)
        server = self.servers[place]
        children = (*server.processes("frontend"), *server.processes("engine"))
        # Nobody may notice that another one has gone: the system kills a container's processes in one go.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (server.process.pid, *children):
                os.kill(pid, number)
        server.process.wait()
        self.servers[place] = self._start(self.hosts[place])

    def kill_with_a_call(self, place: int) -> None:
        """The same once calls wait in it, as its engine stands still."""
        server = self.servers[place % len(self.servers)]
        os.kill(server.children()["engine"], signal.SIGSTOP)
        until = time.monotonic() + START_SECONDS
        waiting, grown = server.total("convoy_requests_in_flight"), 0
        while grown < 2:  # what it says first may count calls that have just been answered
            assert time.monotonic() < until, "no calls have come"
            threading.Event().wait(0.01)
            now = server.total("convoy_requests_in_flight")
            waiting, grown = now, grown + (now > waiting)
        self.kill(place)

    def _start(self, host: str, wait: bool = True) -> Server:
        ports = {"grpc_port": str(self.port), "http_port": str(self.http_port)}
        return Server(self._repository, [f"server.host={host}", *self._settings], wait=wait, **ports)


def changed(text: str, changes: Mapping[str, str]) -> str:
    """`text` with other addresses and ports. Each of them has to be in it once."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is in it {text.count(old)} times, want once"
        text = text.replace(old, new)
    return text


class Proxy:
    """Envoy, HAProxy or nginx, on the file of deploy/ with other addresses. `grpc` is HOST:PORT, `http` a base URL."""

    def __init__(self, name: str, fleet: Fleet, folder: Path, also: Mapping[str, str] | None = None) -> None:
        """`also`: what is changed besides, once each."""
        grpc, http, admin = free_ports(3)
        self.grpc, self.http, self.admin = f"127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", f"http://127.0.0.1:{admin}"
        file, configure, command = _PROXIES[name]
        path = folder / Path(file).name
        text = configure((DEPLOY / file).read_text(), fleet, grpc, http, admin, folder)
        path.write_text(changed(text, also or {}))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program(name), *command(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_until_ready(len(fleet.hosts))
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, servers: int) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            if get(f"{self.http}/readyz")[0] == 200 and self._healthy(servers):
                return
            threading.Event().wait(0.05)
        raise AssertionError(f"not ready in {START_SECONDS:g} s: {self.log.read_text()[-2000:]}")

    def _healthy(self, servers: int) -> bool:
        """Whether it has found all servers, where it says so."""
        status, text = get(f"{self.admin}/clusters")
        return status != 200 or sum("health_flags::healthy" in line for line in text.splitlines()) == 2 * servers

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _envoy(text: str, fleet: Fleet, grpc: int, http: int, admin: int, folder: Path) -> str:
    def endpoints(port: int, wanted: int) -> dict[str, str]:
        line = "              - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}\n"
        return {line.format("convoy", port): "".join(line.format(host, wanted) for host in fleet.hosts)}

    listening = {
        f"{{address: 0.0.0.0, port_value: {old}}}": f"{{address: 127.0.0.1, port_value: {new}}}"
        for old, new in ((8001, grpc), (8000, http), (9901, admin))
    }
    return changed(text, listening | endpoints(8001, fleet.port) | endpoints(8000, fleet.http_port))


def _haproxy(text: str, fleet: Fleet, grpc: int, http: int, admin: int, folder: Path) -> str:
    servers: dict[str, str] = {}
    for place, host in enumerate(fleet.hosts, start=1):
        line = "{} proto h2 check check-proto h1 port {}"
        servers |= {line.format(f"replica-{place}:8001", 8000): line.format(f"{host}:{fleet.port}", fleet.http_port)}
        servers |= {f"replica-{place}:8000": f"{host}:{fleet.http_port}"}
    return changed(text, {"0.0.0.0:8001": f"127.0.0.1:{grpc}", "0.0.0.0:8000": f"127.0.0.1:{http}"} | servers)


def _nginx(text: str, fleet: Fleet, grpc: int, http: int, admin: int, folder: Path) -> str:
    servers: dict[str, str] = {}
    for place, host in enumerate(fleet.hosts, start=1):
        servers |= {
            f"replica-{place}:8001": f"{host}:{fleet.port}",
            f"replica-{place}:8000": f"{host}:{fleet.http_port}",
        }
    listening = {"listen 8001 ": f"listen 127.0.0.1:{grpc} ", "listen 8000;": f"listen 127.0.0.1:{http};"}
    files = {"/tmp/nginx.pid": f"{folder}/nginx.pid", "/tmp/nginx-bodies": f"{folder}/nginx-bodies"}
    return changed(text, listening | servers | files)


_Configure = Callable[[str, Fleet, int, int, int, Path], str]
_PROXIES: dict[str, tuple[str, _Configure, Callable[[Path], list[str]]]] = {
    "envoy": (
        "envoy/envoy.yaml",
        _envoy,
        lambda path: ["-c", str(path), "--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning"],
    ),
    "haproxy": ("haproxy/haproxy.cfg", _haproxy, lambda path: ["-db", "-f", str(path)]),
    "nginx": (
        "nginx/nginx.conf",
        _nginx,
        lambda path: ["-p", str(path.parent), "-c", str(path), "-e", "stderr", "-g", "daemon off;"],
    ),
}


def get(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Status and body of a request; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers or {})), timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def image(size: int) -> np.ndarray:
    """Random pixels, uint8 (side, side, 3): `size` bytes, rounded down to a square."""
    side = int((size / 3) ** 0.5)
    return np.random.default_rng(size).integers(0, 256, (side, side, 3), np.uint8)


class Load:
    """Calls at a rate, on one connection, while the block lasts: each is sent at its time, answered or not.

    sent   calls that were begun
    lost   what ended those that were not answered
    """

    def __init__(self, connect: Connect, size: int, rate: float) -> None:
        self.sent = 0
        self.answered = 0
        self.lost: list[BaseException] = []
        self._connect = connect
        self._image = image(size)
        self._rate = rate
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._connect() as client, asyncio.TaskGroup() as calls:
            began = loop.time()
            while not self._over:
                await asyncio.sleep(max(0.0, began + self.sent / self._rate - loop.time()))
                self.sent += 1
                calls.create_task(self._call(client))

    async def _call(self, client: AsyncClient) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await ask(client, self._image)
            self.answered += 1
        except Exception as error:
            self.lost.append(error)

    def wait(self, calls: int, seconds: float = 240.0) -> None:
        """Waits until `calls` calls have ended since the start."""
        until = time.monotonic() + seconds
        while self.answered + len(self.lost) < calls:
            assert time.monotonic() < until, f"{self.answered} calls were answered in {seconds:g} s, want {calls}"
            threading.Event().wait(0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join()


async def ask(client: AsyncClient, picture: np.ndarray) -> None:
    """One call. Raises unless it is answered."""
    found = await client.classify(picture, "letters", top_k=1)
    assert len(found.labels) == 1


def capacity(connect: Connect, size: int, calls: int = 100, callers: int = 24) -> float:
    """Calls a second that are answered when so many callers send one after another."""
    return asyncio.run(_capacity(connect, size, calls, callers))


async def _capacity(connect: Connect, size: int, calls: int, callers: int) -> float:
    loop = asyncio.get_running_loop()
    picture, answered = image(size), 0

    async def call(client: AsyncClient) -> None:
        nonlocal answered
        while answered < calls:
            await ask(client, picture)
            answered += 1

    async with connect() as client:
        await asyncio.gather(*(ask(client, picture) for _ in range(6)))  # connects to all
        began = loop.time()
        await asyncio.gather(*(call(client) for _ in range(callers)))
        return answered / (loop.time() - began)


def through(target: str, **more: Any) -> Connect:
    """Callers of a proxy: on one connection, without retries of their own."""
    return lambda: AsyncClient(target, retry=False, **more)


class Cell(NamedTuple):
    """What became of the calls of one run."""

    rate: float  # calls a second
    ended: int  # servers
    sent: int
    lost: list[BaseException]

    def __str__(self) -> str:
        kinds = Counter(f"{type(error).__name__}: {error}"[:160] for error in self.lost)
        return (
            f"{self.sent} calls at {self.rate:.0f}/s, {self.ended} servers ended, {len(self.lost)} lost: {dict(kinds)}"
        )


def play(
    connect: Connect,
    size: int,
    end: Callable[[int], None],
    *,
    calls: int,
    ends: int,
    measure: Connect | None = None,
) -> Cell:
    """Ends one server after the other while at least so many calls are sent, at a share of what all can answer.

    end      ends a server and starts another one in its place: a method of Fleet
    measure  what finds out how much that is, if not the callers themselves
    """
    # The larger of two: what pauses this machine makes it look smaller than it is, and the load with it.
    rate = _SHARE * max(capacity(measure or connect, size) for _ in range(2))
    ended = 0
    with Load(connect, size, rate) as load:
        while ended < ends or load.sent < calls:
            load.wait(load.sent + 20)
            end(ended)
            ended += 1
        load.wait(load.sent + 20)
    return Cell(rate, ended, load.sent, load.lost)
