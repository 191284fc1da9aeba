"""A transport with plain methods behind it, in a thread of its own, for tests that call it with real clients."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import uvloop

from convoy.service.errors import BadImage, ConvoyError, QueueFull
from convoy.service.followed import Followed
from convoy.service.frontend.health import HEALTH, Health
from convoy.service.frontend.reflection import Reflection
from convoy.service.frontend.transport.choice import choose
from convoy.service.frontend.transport.interface import Limits, Received, Service, Stream
from convoy.service.tls import Tls
from tests.service.running import skip_without

LIMITS = Limits(message_bytes=4 << 20, metadata_bytes=16 << 10, calls=1000, min_ping_seconds=0)
SECONDS = 20.0  # for anything that should happen


class Methods:
    """The methods of test.Test, and what became of their calls: `begun`, `ended` and `cancelled`, by name.

    A call of `Wait`, and each message to `Hold`, waits until `release` is called.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.deadlines: list[int] = []  # of calls of Echo
        self.changed = threading.Condition()
        self._free = asyncio.Event()
        names = ("Echo", "Greet", "Wait", "Refuse", "Fail", "Late")
        unary = {name: self._counted(name, getattr(self, name)) for name in names}
        streams = ("EchoStream", "Deaf", "Pour", "Leave", "RefuseStream", "FailStream")
        streaming = {name: self._counted(name, getattr(self, name)) for name in streams}
        self.service = Service("test.Test", unary, streaming)

    async def Echo(self, received: Received, deadline: float) -> bytes:
        self.deadlines.append(deadline)
        assert received.arrived <= time.monotonic()
        return bytes(received.data)

    async def Greet(self, received: Received, deadline: float) -> bytes:
        return b"good " + received.data

    async def Wait(self, received: Received, deadline: float) -> bytes:
        await self._free.wait()
        return b"waited"

    async def Late(self, received: Received, deadline: float) -> bytes:
        """Goes on for a while although it is cancelled."""
        try:
            await self._free.wait()
        finally:
            await asyncio.sleep(0.05)
        return b"late"

    async def Refuse(self, received: Received, deadline: float) -> ConvoyError:
        text = bytes(received.data).decode()
        return QueueFull(text, retry_after=0.25) if text.startswith("full") else BadImage(text)

    async def Fail(self, received: Received, deadline: float) -> bytes:
        raise ValueError("a secret of the server")

    async def EchoStream(self, stream: Stream) -> None:
        while (received := await stream.read()) is not None:
            await stream.write(bytes(received.data))

    async def Deaf(self, stream: Stream) -> None:
        """Reads nothing until it is released, then says how many messages there were."""
        await self._free.wait()
        messages = 0
        while await stream.read() is not None:
            messages += 1
        await stream.write(str(messages).encode())

    async def Pour(self, stream: Stream) -> None:
        """Sends as many messages of 100 kB as are asked for."""
        received = await stream.read()
        assert received is not None
        for _ in range(int(received.data)):
            await stream.write(bytes(100_000))
            self.count("poured")

    async def Leave(self, stream: Stream) -> None:
        """Ends while its caller still sends."""
        await stream.read()
        await stream.write(b"enough")

    async def RefuseStream(self, stream: Stream) -> ConvoyError:
        received = await stream.read()
        if received is not None and received.data:
            await stream.write(bytes(received.data))
        return BadImage("no image")

    async def FailStream(self, stream: Stream) -> None:
        raise ValueError("a secret of the server")

    def release(self) -> None:
        self._free.set()

    def count(self, what: str) -> None:
        with self.changed:
            self.counts[what] += 1
            self.changed.notify_all()

    def wait_for(self, what: str, count: int = 1) -> None:
        """Until it has been counted so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.counts[what] >= count, SECONDS), f"{what}: {self.counts}"

    def _counted(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            self.count(f"{name} begun")
            try:
                return await method(*arguments)
            except asyncio.CancelledError:
                self.count(f"{name} cancelled")
                raise
            finally:
                self.count(f"{name} ended")

        return call


class Serving:
    """A transport that runs: `target` is its HOST:PORT, or unix:PATH."""

    def __init__(self, kind: str, limits: Limits = LIMITS, address: str = "", tls: Followed[Tls] | None = None) -> None:
        skip_without(kind)
        self.kind = kind
        self.methods: Methods
        self.health: Health
        self._limits = limits
        self._tls = tls
        self._reserved = socket.socket() if not address else None
        if self._reserved is not None:
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._reserved.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{self._reserved.getsockname()[1]}"
        self.target = address
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.target.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def hub(self) -> Any:
        """The state of the transport on libnghttp2."""
        return self._transport._hub

    def do(self, work: Callable[[], Any]) -> Any:
        """Calls a function in the loop of the transport."""

        async def call() -> Any:
            found = work()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(SECONDS)

    def stop(self, seconds: float) -> None:
        """Stops the transport."""
        self.do(lambda: self._transport.stop(seconds))

    def release(self) -> None:
        """Lets the methods that wait go on."""
        self._loop.call_soon_threadsafe(self.methods.release)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(SECONDS)
        if self._reserved is not None:
            self._reserved.close()
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self.methods, self.health = Methods(), Health()
        services = [self.methods.service, self.health.service, *Reflection([HEALTH]).services]
        choice = choose(self.kind)  # type: ignore[arg-type]
        self._transport: Any = choice.make(self.target, services, self._limits, self._tls)
        await self._transport.start()
        self._started.set()
        await self._over.wait()
        await self._transport.stop(0)


def seconds_left(deadline: float) -> float:
    """Until a deadline of a call."""
    return deadline - time.monotonic()
