"""Requests travel together: small ones for one model that arrive in one turn of the loop share a slot, a request to the
engine, and an answer. So do those that arrive while the group before them is at the engine, for a millisecond at most:
they could not run earlier anyway.

Each keeps its own deadline, cancellation, error and times. A request that arrives alone waits for nothing. Requests
join only where the network takes less time for a row than the server for a request (`pays`).

No task serves such a request: a transport calls a `Prompt` with the message, and is called back with the answer.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from convoy.service import metrics
from convoy.service.errors import BadTensor, ConvoyError, DeadlinePassed, PredictedLate, QueueFull
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.call import Call, record_stages, stage_seconds
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.landing import Landing
from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.status import Code
from convoy.service.frontend.tracing import TRACES
from convoy.service.frontend.transport.interface import Received, Reply
from convoy.service.frontend.wire import Parser
from convoy.service.ipc.channel import Answer
from convoy.service.preprocess import Placement
from convoy.service.repository import Version

_BOOKKEEPING = 0.0003  # seconds that a request takes by itself, without the network; measured on one core
LARGEST = 1 << 16  # bytes of a message that joins others: a longer one takes longer than its bookkeeping
_LONGEST_WAIT = 0.001  # seconds for the group before: the engine may be busy with another model
_PREDICTED = 0.002  # seconds; no prediction is more exact than this


def pays(row: Version) -> bool:
    """Returns whether requests for a version should travel together."""
    return row.row_seconds is not None and row.row_seconds < _BOOKKEEPING and row.batched


class Row(NamedTuple):
    """A request that can join others, as a row of their common inputs.

    It goes `alone` where joining would not pay: it is long, or the network takes longer than the request itself.
    """

    kind: Hashable  # requests of one kind share inputs and outputs
    inputs: Sequence[tuple[str, tuple[int, ...]]]  # (dtype, shape) of each, without the rows
    output_bytes: Sequence[tuple[int, int]]  # (number, bytes) of each requested output, for one row
    data: Sequence[bytes | memoryview]  # of each input
    size: tuple[int, int] = (0, 0)  # (height, width) of an image, pixels
    detail: Any = None  # what the answer depends on
    alone: bool = False


class Joinable(Protocol):
    """A method whose requests may travel together."""

    def row(self, request: Any, call: Call) -> Row | None:
        """Returns the request as a row; None if a task has to serve it. Raises what is wrong with it."""

    def learn(self, call: Call, rows: int, deadline: float, error: PredictedLate) -> None:
        """Records that the engine has refused a group of `rows` rows, this call's among them, due at `deadline`."""

    def answers(
        self,
        version: Version,
        rows: Sequence[Row],
        seconds: Sequence[Sequence[float]],
        answer: Answer,
        outputs: dict[int, NDArray[Any]],
    ) -> Sequence[bytes | ConvoyError]:
        """Returns the encoded response to each row, or its error.

        seconds  of each row, per stage in the order of metrics.STAGES, and in total
        outputs  by number, (rows, ...)
        """


class _Waiting:
    """A request that has joined others. One writer: the front end's loop."""

    __slots__ = ("call", "group", "left", "reply", "row")

    def __init__(self, call: Call, row: Row, reply: Reply, group: "_Group") -> None:
        self.call = call
        self.row = row
        self.reply = reply
        self.group = group
        self.left = False  # it is answered, or the caller has cancelled, or its deadline has passed

    def leave(self) -> None:
        """Ends the wait, for the caller's sake."""
        if not self.left:
            self.left = True
            self.call.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
            if all(each.left for each in self.group.waiting):
                self.group.close()

    def end(self, answer: bytes | ConvoyError) -> None:
        """Sends the answer."""
        self.left = True
        self.reply(answer)

    def refuse(self, error: Exception) -> None:
        """Sends an error."""
        refusal = self.call.refuse(error)
        self.call.__exit__(None, None, None)
        self.end(refusal)


class _Group:
    """Requests of one kind that travel together. One writer: the front end's loop."""

    __slots__ = ("_catalogue", "_users", "kind", "lease", "method", "version", "waiting")

    def __init__(self, kind: Hashable, version: Version, method: Joinable, catalogue: Catalogue) -> None:
        self.kind = kind  # of its requests
        self.version = version
        self.method = method
        self.waiting: list[_Waiting] = []
        self.lease: Lease | None = None
        self._catalogue = catalogue
        self._users = 1  # from now on, so that the version is not released while the group gathers
        catalogue.add_users(version, 1)

    @property
    def closed(self) -> bool:
        """Whether it no longer refers to its version."""
        return not self._users

    def occupy(self, lease: Lease) -> None:
        """Records the slot, and that each of its requests refers to their version."""
        self.lease = lease
        self._catalogue.add_users(self.version, len(self.waiting) - self._users)
        self._users = len(self.waiting)

    def close(self) -> None:
        """Releases both: when the group is answered, or when everybody has left it. A second call does nothing."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None
        self._catalogue.add_users(self.version, -self._users)
        self._users = 0


class Coalescer:
    """The groups that gather. One writer: the front end's loop."""

    def __init__(self, catalogue: Catalogue, client: EngineClient) -> None:
        self._catalogue = catalogue
        self._client = client
        self._gathering: dict[Hashable, _Group] = {}  # by kind
        self._at_engine: Counter[Hashable] = Counter()  # groups, by kind
        self._loop = asyncio.get_running_loop()

    def join(self, row: Row, call: Call, reply: Reply, method: Joinable) -> Callable[[], None]:
        """Adds a request to the group of its kind. Returns the function that ends its wait."""
        kind = (call.row.model, call.row.version, call.method, row.kind)
        if row.alone:
            single = _Group(kind, call.row, method, self._catalogue)
            one = _Waiting(call, row, reply, single)
            single.waiting.append(one)
            self._start(single)
            return one.leave
        group = self._gathering.get(kind)
        if group is None or group.closed:  # everybody had left it
            group = self._gathering[kind] = _Group(kind, call.row, method, self._catalogue)
            if kind in self._at_engine:
                self._loop.call_later(_LONGEST_WAIT, self._start_gathered, group)
            else:
                self._loop.call_soon(self._start_gathered, group)
        one = _Waiting(call, row, reply, group)
        group.waiting.append(one)
        if len(group.waiting) >= call.row.batch_size:
            del self._gathering[kind]
            self._start(group)
        return one.leave

    def _start_gathered(self, group: _Group) -> None:
        if self._gathering.get(group.kind) is group:
            del self._gathering[group.kind]
            self._start(group)

    def _start(self, group: _Group) -> None:
        """Sends a group to the engine."""
        group.waiting = [one for one in group.waiting if not one.left]
        if group.waiting:
            try:
                self._send(group)
            except Exception as error:  # ends these requests, and nobody else's
                self._refuse(group, error)

    def _send(self, group: _Group) -> None:
        began, waiting, version = time.monotonic(), group.waiting, group.version
        rows, first = len(waiting), waiting[0].row
        lease = self._client.claim(
            [(dtype, (rows, *shape)) for dtype, shape in first.inputs],
            [(number, rows * nbytes) for number, nbytes in first.output_bytes],
            waiting[0].call.landing if rows == 1 else None,
            [[data] for data in first.data],
        )
        group.occupy(lease)
        for number in lease.unfilled:
            lease.bytes_of(number)[:] = b"".join([one.row.data[number] for one in waiting])
        lease.prepared = (began, began, time.monotonic())
        height, width = first.size
        lease.placement = Placement(height, width, 0, 0, height, width)
        answer = lease.begin(
            version,
            rows=rows,
            in_flight=self._catalogue.users(version),
            deadline=min([one.call.deadline for one in waiting]),
            low_priority=waiting[0].call.low_priority,
            apart=True,
        )
        self._at_engine[group.kind] += 1
        answer.add_done_callback(lambda done: self._finish(group, lease, done))

    def _finish(self, group: _Group, lease: Lease, done: "asyncio.Future[Any]") -> None:
        self._left_engine(group.kind)
        try:
            answer, outputs = done.result()
            lease.finished(answer)
            self._answer(group, lease, answer, outputs)
        except Exception as error:
            self._refuse(group, error)
        group.close()

    def _left_engine(self, kind: Hashable) -> None:
        """Lets the next group of a kind go, once this turn of the loop has read what has arrived."""
        self._at_engine[kind] -= 1
        if not self._at_engine[kind]:
            del self._at_engine[kind]
            if (following := self._gathering.get(kind)) is not None:
                self._loop.call_soon(self._start_gathered, following)

    def _answer(self, group: _Group, lease: Lease, answer: Answer, outputs: dict[int, NDArray[Any]]) -> None:
        waiting, began, now = group.waiting, lease.prepared[0], time.monotonic()
        call = waiting[0].call
        common = stage_seconds(call, lease.prepared, answer.times, now)
        arrivals = [one.call.arrived for one in waiting]
        seconds = [[began - arrived, *common[1:-1], now - arrived] for arrived in arrivals]
        rows = [one.row for one in waiting]
        results = group.method.answers(group.version, rows, seconds, answer, outputs)
        good = [now - one.call.arrived for one, result in zip(waiting, results, strict=True)
                if isinstance(result, bytes) and not one.left]  # fmt: skip
        if good:
            # Before the answers are sent, so that a caller with an answer finds it counted.
            metrics.count_images(call.model, call.version, len(good), common[:-1])
            metrics.count_requests(call.model, call.version, call.method, Code.OK.name, good)
            if not call.low_priority:
                metrics.count_answers(call.model, call.version, call.row.latency_objective, good)
        for one, result, times in zip(waiting, results, seconds, strict=True):
            if one.left:
                continue
            if TRACES.on and isinstance(result, bytes):
                TRACES.record(one.call, times)
            if one.call.span is not None and isinstance(result, bytes):
                record_stages(one.call.span, times, lease, answer)
            if isinstance(result, ConvoyError):
                one.refuse(result)
            else:
                if REQUESTS.all:
                    REQUESTS.answered(one.call)
                one.call.leave()
                one.end(result)

    def _refuse(self, group: _Group, error: Exception) -> None:
        """Ends the requests with an error. Those that may have failed because of their neighbours are sent alone."""
        sent = group.lease is not None
        group.close()
        earliest = min([one.call.deadline for one in group.waiting])  # of one that may have left since
        if isinstance(error, PredictedLate):
            group.method.learn(group.waiting[0].call, len(group.waiting), earliest, error)
        for one in [each for each in group.waiting if not each.left]:
            if len(group.waiting) > 1 and _may_be_spared(one.call.deadline - earliest, error, sent):
                one.group = _Group(group.kind, group.version, group.method, self._catalogue)
                one.group.waiting.append(one)
                self._start(one.group)
            else:
                one.refuse(error)


def _may_be_spared(later: float, error: Exception, sent: bool) -> bool:
    """Returns whether a request of a group would perhaps not have failed alone.

    later  seconds by which its deadline is later than the group's
    sent   whether the group was sent: the engine's queue is full for one as for all, but a smaller slot may be free
    """
    if isinstance(error, DeadlinePassed | PredictedLate):
        return later > _PREDICTED
    return isinstance(error, QueueFull | BadTensor) and not sent


class PromptMethod:
    """A unary method that answers without a task where it can: see Prompt."""

    def __init__(self, name: str, parser: Parser, method: Joinable, gate: Gate, coalescer: Coalescer) -> None:
        self._name = name
        self._parser = parser
        self._method = method
        self._gate = gate
        self._coalescer = coalescer

    def __call__(self, received: Received, deadline: float, reply: Reply) -> Callable[[], None] | None:
        """Returns the function that ends the wait for the answer; None if a task has to serve the request."""
        if len(received.data) > LARGEST and not isinstance(received.data, Landing):
            return None
        call = Call(self._name, received, deadline, self._gate)
        try:
            request, call.payloads = self._parser.parse(received.data)
            row = self._method.row(request, call)
            if row is None:
                return None
            call.enter()
        except Exception as error:  # ends this request: what has called is in the middle of a connection's frames
            refusal = call.refuse(error)
            call.__exit__(None, None, None)
            reply(refusal)
            return _nothing
        return self._coalescer.join(row, call, reply, self._method)


def _nothing() -> None:
    """Ends a wait that is over."""
