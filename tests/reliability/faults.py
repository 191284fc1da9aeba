"""What may go wrong inside a server, done on purpose. See injection.py: these functions run in its processes."""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.reliability.injection import Board

ORDER, DONE, LASTING = range(3)  # cells of `outputs`: a fault that is wanted, how many were done, whether they go on

Arrays = list[NDArray[Any]]


def _probabilities(found: Sequence[Any]) -> bool:
    return found[0].dtype == np.float32 and found[0].ndim == 2


def _mask(found: Sequence[Any]) -> bool:
    return found[0].dtype == np.uint8 and found[0].ndim == 3


def _with(found: Arrays, row: Any, value: float) -> Arrays:
    changed = [values.copy() for values in found]
    changed[0][row] = value
    return changed


def _fail(found: Arrays) -> Arrays:
    raise RuntimeError("the run failed")


# By name: whether a fault fits a run's outputs, and what it makes of them.
FAULTS: dict[str, tuple[Callable[[Sequence[Any]], bool], Callable[[Arrays], Arrays]]] = {
    "NaN": (_probabilities, lambda found: _with(found, (-1, 3), np.nan)),
    "infinity": (_probabilities, lambda found: _with(found, (0, 0), np.inf)),
    "all NaN": (_probabilities, lambda found: _with(found, ..., np.nan)),
    "logits": (_probabilities, lambda found: [np.log(found[0] + 1e-9)]),
    "a row too few": (_probabilities, lambda found: [found[0][:-1]]),
    "a row too many": (_probabilities, lambda found: [np.concatenate([found[0], found[0][:1]])]),
    "a class too few": (_probabilities, lambda found: [found[0][:, :-1].copy()]),
    "another rank": (_probabilities, lambda found: [found[0][..., None]]),
    "no rank": (_probabilities, lambda found: [found[0].sum(dtype=np.float32).reshape(())]),
    "another type": (_probabilities, lambda found: [found[0].astype(np.float64)]),
    "an error": (_probabilities, _fail),
    "a class without a label": (_mask, lambda found: _with(found, (0, 1, 1), 200)),
    "a mask on its side": (_mask, lambda found: [np.ascontiguousarray(values.swapaxes(1, 2)) for values in found]),
    "a mask too few": (_mask, lambda found: [values[:-1] for values in found]),
}
UNWRITTEN = ("nothing written", "half written")
# These look right. Nothing can find them but the example in the file, now and then, and whoever knows the answer.
PLAUSIBLE: dict[str, Callable[[Arrays], Arrays]] = {
    "other classes": lambda found: [np.roll(found[0], 1, axis=1)],
}
NAMES = ("", *FAULTS, *UNWRITTEN, *PLAUSIBLE)  # an order is an index; 0: none


def outputs(kind: str, board: Board) -> None:
    """Spoils what onnxruntime answers."""
    if kind != "engine":
        return
    from convoy.service.engine import dispatcher
    from convoy.service.engine import session as sessions

    run, bound_run = onnxruntime.InferenceSession.run, onnxruntime.InferenceSession.run_with_iobinding
    bind = onnxruntime.IOBinding.bind_ortvalue_output
    rooms: list[Any] = []  # that are bound to outputs now

    compute, check = dispatcher.compute, sessions.check_example
    now = threading.local()  # not while a version loads, which would be refused, and retried much later

    def computed(session: Any, requests: Any) -> Any:
        now.serving = True
        try:
            return compute(session, requests)
        finally:
            now.serving = False

    def checked(session: Any) -> str:
        now.checking = True
        try:
            return check(session)
        finally:
            now.checking = False

    def spoilt(session: Any, names: Any, feed: Any, options: Any = None) -> Any:
        found = run(session, names, feed, options)
        serving = getattr(now, "serving", False)
        if not serving and not getattr(now, "checking", False):
            return found
        if board.cells[LASTING] and _probabilities(found):
            return PLAUSIBLE[NAMES[board.cells[LASTING]]](found)

        def fits(order: int) -> bool:
            name = NAMES[order]
            return _probabilities(found) if name in PLAUSIBLE else name in FAULTS and FAULTS[name][0](found)

        order = board.take(ORDER, fits) if serving else 0
        if not order:
            return found
        board.add(DONE)
        name = NAMES[order]
        return PLAUSIBLE[name](found) if name in PLAUSIBLE else FAULTS[name][1](found)

    def noted(binding: Any, name: str, value: Any) -> None:
        rooms.append(value)
        bind(binding, name, value)

    def bound(session: Any, binding: Any, options: Any = None) -> None:
        given, rooms[:] = list(rooms), []
        order = board.take(ORDER, lambda order: NAMES[order] in UNWRITTEN)
        before = [ctypes.string_at(value.data_ptr(), _nbytes(value)) for value in given] if order else []
        if NAMES[order] != UNWRITTEN[0]:
            bound_run(session, binding, options)
        if order:
            board.add(DONE)
            for value, data in zip(given, before, strict=True):
                half = len(data) // 2
                ctypes.memmove(value.data_ptr() + half, data[half:], len(data) - half)

    dispatcher.compute, sessions.check_example = computed, checked
    onnxruntime.InferenceSession.run = spoilt
    onnxruntime.InferenceSession.run_with_iobinding = bound
    onnxruntime.IOBinding.bind_ortvalue_output = noted


def _nbytes(value: Any) -> int:
    return int(np.prod(value.shape())) * (1 if "uint8" in value.data_type() else 4)


def scatter(kind: str, board: Board) -> None:
    """Writes the rows of a batch of several requests to one another's slots."""
    if kind != "engine":
        return
    from convoy.service.engine import runner  # not before the server itself would

    written = runner._written

    def wrong(request: Any, parts: Any, slots: Any) -> Any:
        return written(request, [np.roll(values, 1, axis=0) for values in parts], slots)

    runner._written = wrong


DECODED, RUN, DECODED_LATE, RUN_LATE = range(4)  # cells of `deadlines`: images decoded, rows run; those expired before
_NEVER = 2e-6  # seconds: a call with less has expired before anybody can have looked at its deadline
_LATE = 0.5  # seconds after the deadline: what begins then cannot have begun to begin in time


def deadlines(kind: str, board: Board) -> None:
    """Counts what is decoded and run, and what of it had expired before. Harms nothing."""
    if kind == "engine":
        _watch_runs(board)
    else:
        _watch_decoding(board)


def no_deadlines(kind: str, board: Board) -> None:
    """The same, and nobody looks at deadlines: neither front end nor engine."""
    deadlines(kind, board)
    if kind == "engine":
        from convoy.service.engine.scheduler import batcher

        following = batcher.Batcher.next
        batcher.Batcher.next = lambda self, now: following(self, -1e9)  # type: ignore[method-assign]
    else:
        from convoy.service.frontend.call import Call

        Call.check_deadline = lambda self: None  # type: ignore[method-assign]


def _watch_runs(board: Board) -> None:
    from convoy.service.engine import dispatcher
    from convoy.service.engine.scheduler import batcher

    compute, following = dispatcher.compute, batcher.Batcher.next

    def chosen(self: Any, now: float) -> Any:
        # Judged as the batch is chosen: between that and its run, the system may pause the process for any time.
        looked = time.monotonic()
        decision = following(self, now)
        for request in () if decision.batch is None else decision.batch.requests:
            if request.deadline < max(request.arrived, looked - _LATE):
                board.add(RUN_LATE, request.rows)
        return decision

    def watched(session: Any, requests: Any) -> Any:
        for request in requests:
            board.add(RUN, request.rows)
        return compute(session, requests)

    batcher.Batcher.next = chosen  # type: ignore[method-assign]
    dispatcher.compute = watched


def _watch_decoding(board: Board) -> None:
    from convoy.service.frontend import prepare

    prepared, opened, calls = prepare.Preparer._decode, prepare.Preparer._picture, threading.local()

    def noted(self: Any, image: Any, data: Any, pixels: Any, call: Any, thread: int) -> Any:
        calls.one, calls.began = call, time.monotonic()
        return prepared(self, image, data, pixels, call, thread)

    def watched(self: Any, *arguments: Any) -> Any:
        call = calls.one
        board.add(DECODED)
        if call.deadline < max(call.arrived + _NEVER, calls.began - _LATE):  # for a pause later on, likewise
            board.add(DECODED_LATE)
        return opened(self, *arguments)

    prepare.Preparer._decode = noted  # type: ignore[method-assign]
    prepare.Preparer._picture = watched  # type: ignore[method-assign]


# Cells of `in_flight`: the largest numbers of bytes so far, and of requests that were admitted.
GATE, RECEIVING, LANDED, ADMITTED = range(4)


def in_flight(kind: str, board: Board) -> None:
    """Notes how many bytes a front end has in hand at most. Harms nothing."""
    if kind != "frontend":
        return
    from convoy.service.frontend.admission import Gate
    from convoy.service.frontend.landing import Landings
    from convoy.service.frontend.transport.exchange import Exchange

    enter, claim, count = Gate.enter, Landings.claim, Exchange._count_receiving

    def entered(self: Any, nbytes: int) -> None:
        enter(self, nbytes)
        board.add(ADMITTED)
        board.most(GATE, self.bytes)

    def claimed(self: Any, nbytes: int) -> Any:
        found = claim(self, nbytes)
        board.most(LANDED, self.bytes)
        return found

    def counted(self: Any, size: int) -> None:
        try:
            count(self, size)
        finally:
            # What one chunk adds is there until its call has failed, which happens before the next chunk is read.
            board.most(RECEIVING, self._connection.hub.receiving)

    Gate.enter = entered  # type: ignore[method-assign]
    Landings.claim = claimed  # type: ignore[method-assign]
    Exchange._count_receiving = counted  # type: ignore[method-assign]


def no_gate(kind: str, board: Board) -> None:
    """The same, and everybody is admitted."""
    if kind == "frontend":
        from convoy.service.frontend.admission import Gate

        def enter(self: Any, nbytes: int) -> None:
            self._empty.clear()
            self._count(1, nbytes)

        Gate.enter = enter  # type: ignore[method-assign]
    in_flight(kind, board)


RETURN, RETURNED = range(2)  # cells of `returning`: the process that is to return its memory, how often that was done


def returning(kind: str, board: Board) -> None:
    """Returns to the system, on command, what the allocator keeps for later: what is left is in use."""
    trim = ctypes.CDLL(None).malloc_trim

    def run() -> None:
        while True:
            time.sleep(0.05)
            if board.take(RETURN, lambda pid: pid == os.getpid()):
                gc.collect()
                trim(0)
                board.add(RETURNED)

    threading.Thread(target=run, daemon=True).start()


def leak(kind: str, board: Board) -> None:
    """Keeps a little of each request of a front end, and now and then a descriptor."""
    returning(kind, board)
    if kind != "frontend":
        return
    from convoy.service.frontend.call import Call

    begun, kept = Call.__init__, []

    def begin(self: Any, *arguments: Any, **named: Any) -> None:
        kept.append(b"\1" * 20_000)
        if len(kept) % 50 == 0:
            os.eventfd(0)
        begun(self, *arguments, **named)

    Call.__init__ = begin  # type: ignore[method-assign]
