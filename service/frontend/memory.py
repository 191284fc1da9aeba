"""Returns memory that a front end no longer uses to the system."""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

from convoy.service import machine
from convoy.service.config import MIB

_SECONDS = 1.0  # between two looks
_SLACK = 48 * MIB  # that a process may keep for what comes next


class Excess:
    """Decides when memory is to be returned. Plain code: bytes in, decisions out.

    The allocator keeps what large messages and pictures have used, gigabytes after a flood of them. Returning it takes
    milliseconds, and using it again page faults. So it is returned only once the process has much more than what it
    had after the last time, and than what the requests in flight explain. What is left is the new measure: memory that
    is really in use is not tried again and again.
    """

    def __init__(self, own: int) -> None:
        self._least = own  # bytes of the process when it kept nothing

    def found(self, own: int, in_flight: int) -> bool:
        """Returns whether to return memory. `own`: bytes of the process; `in_flight`: those of its requests."""
        self._least = min(self._least, own)
        # A request is there as its message, as it was parsed, and as pixels.
        return own > self._least + _SLACK + 3 * in_flight

    def returned(self, own: int) -> None:
        """Records what is left."""
        self._least = own


async def keep_returning(in_flight: Callable[[], int], seconds: float = _SECONDS) -> None:
    """Returns memory to the system as long as the loop runs; `in_flight` is called for the bytes of requests."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, whose allocator keeps less
        return
    gc.freeze()  # what was imported stays: a collection need not look at it
    excess = Excess(machine.own_bytes())
    while True:
        await asyncio.sleep(seconds)
        with suppress(OSError):
            if not excess.found(machine.own_bytes(), in_flight()):
                continue
            await asyncio.to_thread(trim, 0)  # the interpreter goes on meanwhile
            if excess.found(machine.own_bytes(), in_flight()):
                gc.collect()  # cycles may keep large objects, although nothing here makes such on purpose
                await asyncio.to_thread(trim, 0)
            excess.returned(machine.own_bytes())
