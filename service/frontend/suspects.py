"""Finds the requests that end engines. Plain code: deaths in, verdicts out.

The requests that ran when an engine died are suspects. Each runs alone on the next engine. One that then ends that
engine, too, is guilty; its input is refused from then on. Nobody else is charged with anything.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from convoy.service.ipc.channel import Request
from convoy.service.ipc.slots import SharedMemory

_KILLS = 2  # deaths by a signal from outside, while a request runs alone, after which it counts as their cause
_SECONDS = 600.0  # for which an input is refused
_SUSPECT_SECONDS = 60.0  # for which an input runs alone
_MOST = 1024  # inputs of each kind
_SAMPLE = 64  # bytes


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the deaths of engines say about one request."""

    alone: bool = False  # it ran when an engine died: from now on it runs alone
    skip: tuple[int, ...] = ()  # guilty parts: see `parts`
    kills: int = 0  # deaths by a signal from outside while it ran alone

    def leaves(self, request: Request) -> bool:
        """Returns whether any part of the request is not guilty."""
        return len(self.skip) < parts(request)


INNOCENT = Suspicion()


def after_death(before: Suspicion, mark: int, from_outside: bool) -> tuple[Suspicion, int | None]:
    """Returns the suspicion of a request from now on, and the part that has turned out to be guilty.

    mark          what it was marked with when the engine died: see `slots.mark_of`
    from_outside  whether another process killed the engine: an operator, or the kernel for lack of memory
    """
    if not mark:
        return before, None
    if not before.alone:
        return replace(before, alone=True), None
    if from_outside and before.kills + 1 < _KILLS:
        return replace(before, kills=before.kills + 1), None
    return replace(before, skip=(*before.skip, mark - 1)), mark - 1


def parts(request: Request) -> int:
    """Returns the number of parts of a request that can be guilty: its rows if they fail one by one, else 1."""
    return request.rows if request.apart else 1


class Guilty(NamedTuple):
    """An input that ends engines, as front ends tell each other of it."""

    digest: bytes
    sample: bytes
    until: float  # when it is refused no longer


class Quarantine:
    """Inputs that end engines, and inputs that may. Both for a time, at most `_MOST` of each. One writer: the front
    end's loop.

    A caller that gives up early, and repeats its request, is not spared by it: the input stays a suspect.

    memory  of the front end, in which the inputs of requests are
    """

    def __init__(self, memory: SharedMemory, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._clock = clock
        # By sample, oldest first: when each ends. A sample is the digest of a few bytes of an input. Requests of others
        # are compared by it: a digest of all their bytes would cost more.
        self._suspects: OrderedDict[bytes, float] = OrderedDict()
        self._guilty: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()  # by digest: when it ends, and its sample

    def __bool__(self) -> bool:
        return bool(self._suspects or self._guilty)

    def suspect(self, request: Request) -> None:
        """Records that a request ran when an engine died."""
        for part in range(parts(request)):
            self._suspects[self._sample(request, part)] = self._clock() + _SUSPECT_SECONDS
        while len(self._suspects) > _MOST:
            self._suspects.popitem(last=False)

    def clear(self, request: Request) -> None:
        """Records that a request has run and nothing happened."""
        for part in range(parts(request)):
            self._suspects.pop(self._sample(request, part), None)

    def add(self, request: Request, part: int) -> Guilty:
        """Refuses a part of a request from now on."""
        guilty = Guilty(self._digest(request, part), self._sample(request, part), self._clock() + _SECONDS)
        self.refuse(guilty)
        return guilty

    def refuse(self, guilty: Guilty) -> None:
        """Refuses an input from now on."""
        self._guilty.pop(guilty.digest, None)
        self._guilty[guilty.digest] = guilty.until, guilty.sample
        if len(self._guilty) > _MOST:
            self._guilty.popitem(last=False)

    def check(self, request: Request) -> tuple[bool, tuple[int, ...]]:
        """Returns whether a request must run alone, and the parts of it that are refused."""
        now = self._clock()
        while self._suspects and next(iter(self._suspects.values())) <= now:
            self._suspects.popitem(last=False)
        while self._guilty and next(iter(self._guilty.values()))[0] <= now:
            self._guilty.popitem(last=False)
        if not self:
            return False, ()
        guilty = {sample for _, sample in self._guilty.values()}
        samples = [self._sample(request, part) for part in range(parts(request))]
        refused = [part for part, sample in enumerate(samples)
                   if sample in guilty and self._digest(request, part) in self._guilty]  # fmt: skip
        return bool(refused) or any(sample in self._suspects for sample in samples), tuple(refused)

    def _digest(self, request: Request, part: int) -> bytes:
        found = hashlib.blake2b(digest_size=16)
        for kind, content in self._content(request, part):
            found.update(kind)
            found.update(content)
        return found.digest()

    def _sample(self, request: Request, part: int) -> bytes:
        found = hashlib.blake2b(digest_size=8)
        for kind, content in self._content(request, part):
            found.update(kind)
            found.update(bytes(content[:: max(1, len(content) // _SAMPLE)]))
        return found.digest()

    def _content(self, request: Request, part: int) -> Iterator[tuple[bytes, memoryview]]:
        """What each input is, and its bytes."""
        count = parts(request)
        for span in request.inputs:
            shape = (1, *span.shape[1:]) if count > 1 else span.shape
            nbytes = span.nbytes // count
            content = self._memory.view(span)[part * nbytes : (part + 1) * nbytes]
            yield f"{request.model}/{request.version}/{span.number}/{span.dtype}{shape}".encode(), content


class Suspected(Protocol):
    """A request's place that can be under suspicion: a Lease."""

    suspicion: Suspicion
    mark: int
    held: bool
    engine: Any


L = TypeVar("L", bound=Suspected)


class Suspects(Generic[L]):
    """The requests that ran when an engine died, until they run again. One writer: the front end's loop."""

    def __init__(self, memory: SharedMemory) -> None:
        self.resent: set[int] = set()  # requests without blame that an engine had when it died
        self._quarantine = Quarantine(memory)
        self._marked: dict[int, list[L]] = {}  # by device, until it is decided what becomes of them
        self._held: list[L] = []  # they wait for those without blame

    @property
    def holding(self) -> bool:
        """Whether any wait for those without blame."""
        return bool(self._held)

    def check(self, lease: L, request: Request) -> bool:
        """Brings the suspicion of a request up to date before it is queued. Returns whether any of it may run."""
        if self._quarantine:
            alone, guilty = self._quarantine.check(request)
            skip = tuple(sorted({*guilty, *lease.suspicion.skip}))
            lease.suspicion = replace(lease.suspicion, alone=alone or lease.suspicion.alone, skip=skip)
        return lease.suspicion.leaves(request)

    def suspect(self, lease: L, request: Request) -> None:
        """Records a request that ran with others when an engine died, and lets it wait."""
        self._quarantine.suspect(request)
        lease.suspicion, _ = after_death(lease.suspicion, lease.mark, from_outside=False)
        lease.mark = 0
        self.hold(lease)

    def mark(self, lease: L, request: Request, device: int) -> None:
        """Records a request on which is decided once it is known how the engine of a device died."""
        self._quarantine.suspect(request)
        self._marked.setdefault(device, []).append(lease)

    def marked(self, device: int) -> list[L]:
        """Returns the requests on which can be decided now, once."""
        return self._marked.pop(device, [])

    def refuse(self, guilty: Guilty) -> None:
        """Refuses an input that has ended engines on requests of another front end."""
        self._quarantine.refuse(guilty)

    def judge(self, lease: L, request: Request, from_outside: bool) -> Guilty | None:
        """Decides on one of them. Returns its part that is guilty, if one is. `from_outside`: see `after_death`."""
        lease.suspicion, guilty = after_death(lease.suspicion, lease.mark, from_outside)
        lease.mark = 0
        return None if guilty is None else self._quarantine.add(request, guilty)

    def clear(self, lease: L, request: Request) -> None:
        """Records that a request has been answered."""
        if lease.suspicion.alone:
            self._quarantine.clear(request)

    def hold(self, lease: L) -> None:
        """Lets a suspect wait for those without blame."""
        lease.held = True
        self._held.append(lease)

    def must_wait(self, waiting: Mapping[int, L]) -> bool:
        """Returns whether an engine still has requests without blame from before its death. `waiting` is by request."""
        self.resent = {id_ for id_ in self.resent if id_ in waiting}
        return any(waiting[id_].engine is not None for id_ in self.resent)

    def let_go(self) -> list[L]:
        """Returns those that wait, once."""
        held, self._held = self._held, []
        for lease in held:
            lease.held = False
        return held
