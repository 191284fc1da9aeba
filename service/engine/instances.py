"""The sessions of one network that run concurrently on one device."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from convoy.service.engine.providers import GPU
from convoy.service.engine.session import Session

P = ParamSpec("P")
T = TypeVar("T")


class Instance:
    """One session and its only thread: a CUDA graph is tied to the thread that recorded it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.running = 0  # batches, of which all but one wait; under the dispatcher's lock
        self.off_loop = 0  # number of holders that run something else there; written by the loop, read by other threads
        self._thread = ThreadPoolExecutor(1, "run")

    def submit(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Call it in the session's thread."""
        return self._thread.submit(call, *arguments, **named)


class Instances:
    """All sessions of a version, and their running batches."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.all = tuple(Instance(session) for session in sessions)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def session(self) -> Session:
        """One of the sessions, to read the network's inputs and outputs from."""
        return self.all[0].session

    def reserve(self) -> Instance:
        """Reserve an instance for a batch, which counts as running: the first idle one, whose memory is warm.

        The batcher starts no more batches than there are sessions, except just after their number changed.
        """
        instance = min(self.all, key=lambda each: each.running)
        instance.running += 1
        return instance

    def keep_off_loop(self, change: int) -> None:
        """Add `change` to the hold counts: while held, batches use the threads, where other calls may run."""
        for instance in self.all:
            instance.off_loop += change


class Together(Session):
    """All sessions of a version as one for measurements: each runs the same batch concurrently, as under load."""

    def __init__(self, instances: Instances) -> None:
        self.__dict__.update(instances.session.__dict__)
        self._instances = instances

    def run(
        self, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None] = ()
    ) -> list[NDArray[np.generic]]:
        """One session's outputs, after all have run. They are valid until the next run."""
        running = [each.submit(_as_served, each.session, arrays) for each in self._instances.all]
        outputs = [done.result() for done in running]
        return outputs[0]


def _as_served(session: Session, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    if session.provider not in GPU:
        return session.run(arrays)
    # Copy through the page-locked memory that batches use: the copy is part of a batch's time.
    gathered = [
        buffer.array(values.shape, values.dtype) for buffer, values in zip(session.input_buffers, arrays, strict=True)
    ]
    for target, values in zip(gathered, arrays, strict=True):
        target[...] = values
    return session.run(gathered, session.rooms(gathered, {}))
