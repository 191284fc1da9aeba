"""The threads of a front end. They decode and postprocess, and serve all callers in turn."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

HEAVY = 0.1  # seconds; estimated work of as much or more is heavy


class Who(NamedTuple):
    """Whose work it is.

    caller      its name or its address
    connection  one of its connections; behind one address there may be several callers
    """

    caller: str
    connection: Hashable


NOBODY = Who("", "")


def awaited(work: Future[T]) -> asyncio.Future[T]:
    """Returns a future of the running loop for work in a thread, as asyncio.wrap_future does.

    That one leaves a cycle of references, with the error of failed work in it, and so all that the frames of its
    traceback refer to, such as a picture, until the collector runs. Whoever awaits this one in a variable deletes the
    variable in the end: the variable's frame is in that traceback, too.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(lambda ended: work.cancel() if ended.cancelled() else None)
    work.add_done_callback(partial(_hand_over, loop, [future]))
    return future


def _hand_over(loop: asyncio.AbstractEventLoop, waiting: list[asyncio.Future[T]], work: Future[T]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
        loop.call_soon_threadsafe(_deliver, waiting, work)


def _deliver(waiting: list[asyncio.Future[T]], work: Future[T]) -> None:
    future = waiting.pop()  # the work, which refers to the list, no longer refers to it
    if future.done():
        return
    if work.cancelled():
        future.cancel()
    elif (error := work.exception()) is not None:
        future.set_exception(error)
        future.exception()  # whoever has been cancelled and waits for the end alone does not look: that is no fault
    else:
        future.set_result(work.result())


class Turns(Generic[T]):
    """What callers wait for. Their turns come round: first among callers, then among the connections of one, and the
    work of a connection in the order of its arrival. Plain code, without locks."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, OrderedDict[Hashable, deque[T]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, who: Who, what: T) -> None:
        """Adds the last of a connection."""
        connections = self._waiting.setdefault(who.caller, OrderedDict())
        connections.setdefault(who.connection, deque()).append(what)

    def take(self) -> T:
        """Removes and returns the next one; there must be one."""
        caller, connections = self._waiting.popitem(last=False)
        connection, work = connections.popitem(last=False)
        what = work.popleft()
        if work:
            connections[connection] = work
        if connections:
            self._waiting[caller] = connections
        return what


class _Work:
    """Work that waits or runs. `call` is None once it has ended or is cancelled: what it refers to is free then."""

    __slots__ = ("call", "future", "heavy")

    def __init__(self, call: Callable[[int], Any], heavy: bool) -> None:
        self.future: Future[Any] | None = Future()
        self.call: Callable[[int], Any] | None = call
        self.heavy = heavy
        self.future.add_done_callback(self._forget)

    def _forget(self, ended: Future[Any]) -> None:
        self.call = None
        if not ended.cancelled():  # otherwise `run` tells those who wait for it in threads
            self.future = None

    def run(self, thread: int) -> None:
        future, call = self.future, self.call
        if future is None or not future.set_running_or_notify_cancel() or call is None:
            return
        try:
            future.set_result(call(thread))
        except BaseException as error:
            future.set_exception(error)
        finally:
            # An error refers to this call, which would refer to the error: a picture would stay until the collector
            # runs.
            del self, future, call


class Threads:
    """Threads that run the work of all callers in turn, as `Turns` has it.

    Heavy work, such as the largest pictures, waits for itself: it never uses all threads, so that light work finds one,
    and it always gets one, so that it advances under a flood of light work. With a single thread, light and heavy work
    alternate.

    heavy  threads that may do heavy work, all but one by default; more use more memory

    `_condition` guards all other state.
    """

    def __init__(self, number: int, name: str, heavy: int | None = None) -> None:
        self.number = number
        self._most_heavy = max(1, min(number - 1, number if heavy is None else heavy))
        self._light: Turns[_Work] = Turns()
        self._heavy: Turns[_Work] = Turns()
        self._heavy_running = 0
        self._was_heavy = False  # the work that began last
        self._condition = threading.Condition()
        for thread in range(number):
            threading.Thread(target=self._serve, args=(thread,), name=f"{name}-{thread}", daemon=True).start()

    def submit(self, who: Who, work: Callable[[int], T], seconds: float = 0.0) -> Future[T]:
        """Runs `work` when its turn has come, with the number of its thread. `seconds` is an estimate of its time."""
        added = _Work(work, seconds >= HEAVY)
        future = added.future
        assert future is not None
        with self._condition:
            (self._heavy if added.heavy else self._light).add(who, added)
            self._condition.notify()
        return future

    def _serve(self, thread: int) -> None:
        while True:
            with self._condition:
                while (work := self._next()) is None:
                    self._condition.wait()
                self._heavy_running += work.heavy
                self._was_heavy = work.heavy
            work.run(thread)
            with self._condition:
                self._heavy_running -= work.heavy
                if work.heavy:
                    self._condition.notify()  # another thread may run the next heavy one
            del work  # it is not kept while the thread waits

    def _next(self) -> _Work | None:
        """Returns what this thread runs now; None: nothing. Called under the lock."""
        if self._heavy and self._may_run_heavy():
            return self._heavy.take()
        return self._light.take() if self._light else None

    def _may_run_heavy(self) -> bool:
        if self.number == 1:
            return not (self._light and self._was_heavy)
        if not self._heavy_running:
            return True
        return not self._light and self._heavy_running < self._most_heavy
