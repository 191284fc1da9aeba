"""Messages land: their large payloads are written into the memory that is shared with the engines while they arrive.

So the pixels or tensors of a request are where its engine reads them once its message is complete. The payloads of one
message lie in one block, each behind the other, so that images of one size are the rows of one tensor.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial

from convoy.service.errors import QueueFull
from convoy.service.frontend.transport.interface import Data, Land
from convoy.service.frontend.wire import NOTHING, AsItIs, Parser
from convoy.service.ipc.slots import Arena

_SHARE = 4  # messages on their way use at most 1/4 of the memory: their callers may stall


class Landings:
    """The blocks of messages that land. One writer: the front end's loop."""

    def __init__(self, arena: Arena, changed: Callable[[], None] = lambda: None) -> None:
        self.blocks = 0  # in use
        self.bytes = 0  # of those that are not the inputs of requests, or not yet
        self._arena = arena
        self._changed = changed

    def land(self, parser: Parser) -> Land | None:
        """Returns what lets the messages of `parser` land; None if they have no large payloads."""
        # Tensors are little-endian on their way.
        return partial(Landing, self, parser) if parser.has_payloads and sys.byteorder == "little" else None

    def claim(self, nbytes: int) -> tuple[tuple[int, int], memoryview]:
        """Returns a block for payloads on their way, and its memory. Raises QueueFull."""
        if self.bytes + nbytes > self._arena.nbytes // _SHARE:
            raise QueueFull(f"{self.bytes} bytes of slot memory are in use by requests on their way")
        block = self._arena.allocate(nbytes)
        self.blocks += 1
        self.bytes += block[1]
        self._changed()
        return block, memoryview(self._arena.mapping.bytes_at(*block).data)

    def settle(self, block: tuple[int, int]) -> None:
        """Counts a block no longer: it has become the inputs of a request."""
        self.bytes -= block[1]

    def free(self, block: tuple[int, int]) -> None:
        """Frees a block that no process reads or writes any more."""
        self._arena.free(block)
        self.blocks -= 1
        self._changed()


class Landing:
    """See interface.Landing. The transport writes to its block, and nobody once the message is complete.

    The block is freed when all have released it: the transport, which waits until the call has ended, and each lease
    whose inputs lie there. One writer: the front end's loop.
    """

    def __init__(self, landings: Landings, parser: Parser, size: int) -> None:
        self._landings = landings
        self._size = size
        self._lifting = parser.lifting(size, self._put)
        self._block: tuple[int, int] | None = None
        self._memory = memoryview(b"")
        self._filled = 0
        self._users = 1
        self._settled = False

    def __len__(self) -> int:
        return self._size

    def write(self, piece: memoryview) -> int:
        """See interface.Landing."""
        return self._lifting.write(piece)

    def so_far(self) -> bytearray:
        """See interface.Landing."""
        return self._lifting.so_far(self._memory[: self._filled])

    def lifted(self) -> tuple[Data, Mapping[int, memoryview]]:
        """See interface.Landing."""
        message = self._lifting.message()
        if message is None:
            return self.so_far(), NOTHING
        payloads, at = {}, 0
        for number, size in self._lifting.sizes.items():
            payloads[number] = self._memory[at : at + size].toreadonly()
            at += size
        return message, payloads

    def adopt(self) -> None:
        """Keeps the payloads as inputs of a request. `release` undoes it."""
        assert self._block is not None
        self._users += 1
        if not self._settled:
            self._settled = True
            self._landings.settle(self._block)

    def release(self) -> None:
        """Ends one use."""
        self._users -= 1
        assert self._users >= 0, "a landing was released twice"
        if self._users or self._block is None:
            return
        if not self._settled:
            self._landings.settle(self._block)
        self._landings.free(self._block)

    def _put(self, number: int, part: memoryview) -> None:
        if self._block is None:
            try:
                # The payloads fit: they are a part of what has not arrived.
                self._block, self._memory = self._landings.claim(self._size - len(self._lifting.rest))
            except QueueFull:
                raise AsItIs from None
        end = self._filled + len(part)
        self._memory[self._filled : end] = part
        self._filled = end
