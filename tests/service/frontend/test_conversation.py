import asyncio
import math
from collections.abc import Callable

import pytest

from convoy.service.frontend.streams import Conversation, Reply, Work
from convoy.service.frontend.transport.interface import Received


class Caller:
    """A stream of two requests, whose caller leaves while the first answer is sent: it may have read it."""

    deadline = math.inf

    def __init__(self) -> None:
        self._messages = [Received(b"second", 0.0), Received(b"first", 0.0)]
        self.leave: Callable[[], object] = lambda: None

    async def read(self) -> Received | None:
        if self._messages:
            return self._messages.pop()
        await asyncio.Event().wait()
        return None

    async def write(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.leave)
        await asyncio.Event().wait()


def test_request_is_answered_once_the_transport_has_the_answer() -> None:
    outcomes: dict[bytes, str] = {}

    def answer(received: Received, deadline: float, reply: Reply) -> Work:
        async def work() -> None:
            request = bytes(received.data)
            outcomes[request] = "cancelled"
            await reply.send(b"answer")
            outcomes[request] = "answered"

        return work

    async def play() -> None:
        stream = Caller()
        conversation = Conversation(stream, asyncio.Event(), 4, ordered=False)
        running = asyncio.ensure_future(conversation.run(answer))
        stream.leave = running.cancel
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(asyncio.wait_for(play(), 20))
    assert outcomes == {b"first": "answered", b"second": "cancelled"}
