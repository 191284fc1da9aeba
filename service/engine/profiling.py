"""Measures batch times of a network before it serves, and runs every size of every expected shape once.

So no request pays for the first run of its batch size.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service.buckets import Size
from convoy.service.engine import profiles
from convoy.service.engine.profiles import BatchTime, Machine, Profile
from convoy.service.engine.providers import GPU
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.session import DeviceLost, Session
from convoy.service.errors import BadModelFile
from convoy.service.metadata import Document, input_shape

Shape = tuple[int, ...]

log = logging.getLogger(__name__)

_SEED = 1
_RUNS = 5  # of each measured size, after its first
_SECONDS = 0.25  # for the runs of one size; at least one run is made
_LONG = 0.05  # seconds; a single measurement of a batch this long is exact enough to compare throughput
_GAIN = 1.01  # minimum throughput relative to half the size, for larger sizes to be tried
_WARM_UP = 1.0  # second, on the CPU, for unmeasured sizes: their memory has already been allocated for a larger one


def prepare(
    session: Session,
    file: Path,
    largest: Mapping[Shape, int],
    device: int,
    threads: int,
    instances: int = 1,
    settings: str = "",
    folder: Path | None = None,
    *,
    again: bool = False,
) -> tuple[Profile, ...]:
    """The profiles of a session for the shapes of `largest`, each up to its maximum batch size.

    Profiles in `folder`, by default that of the model file, are reused if they were made on this machine, unless they
    are to be measured `again`; otherwise new ones are measured and written there. Each size of each shape that will be
    used has then run. Raises BadModelFile if a batch fails.
    """
    if not largest:
        return ()
    folder = folder or file.parent
    machine = profiles.machine(file, session.provider, device, threads, instances, settings)
    stored = profiles.read(folder)
    known = {(each.shape, each.most): each for each in stored if each.machine == machine and not again}
    current = [
        _again(session, known[entry]) if entry in known else measure(session, machine, *entry)
        for entry in largest.items()
    ]
    if not known.keys() >= largest.items():
        profiles.save(folder, [*current, *(each for each in stored if _other_layout(each.machine, machine))])
    return tuple(current)


def shapes(document: Document | None, buckets: Sequence[Size], most: int, max_pixels: int) -> dict[Shape, int]:
    """The expected input shapes of a network, without N, as far as known, each with its maximum batch size."""
    if document is None:
        return {}
    expected: list[Shape] = [input_shape(document)]
    if document.takes.free:
        expected = [(height, width, document.image.channels) for height, width in buckets]
    return {shape: largest_batch(document, shape, most, max_pixels) for shape in expected}


def largest_batch(document: Document | None, shape: Shape, most: int, max_pixels: int) -> int:
    """The maximum batch size of a shape: a network that accepts any size needs memory in proportion to the pixels."""
    if document is None or not document.takes.free:
        return most
    return min(most, max(1, max_pixels // document.takes.places(shape)))


def measure(session: Session, machine: Machine, shape: Shape, most: int) -> Profile:
    """Measure batches of 1, 2, 4, ... images until throughput levels off, at most `most`.

    A size that does not seem to pay is measured again, like the one before it. Each size in between that will be used
    runs as well. `shape` is one that the session accepts, without N.
    """
    document = session.document
    assert document is not None
    dtype = document.takes.dtype
    batches: dict[int, BatchTime] = {}
    poor = 0
    for size in doubling(most):
        batches[size] = _time(session, _values(size, shape, dtype))
        # Something else may have used the machine, which only makes batches slower: measured again if that should not
        # take long.
        if _poor(batches, size) and 2 * batches[size // 2].seconds < _SECONDS:
            for each in (size, size // 2):
                batches[each] = min(batches[each], _time(session, _values(each, shape, dtype)), key=_seconds)
        poor = poor + 1 if _poor(batches, size) else 0
        if poor == 2 or (poor and batches[size].seconds > _LONG):
            break
    profile = Profile(machine=machine, shape=shape, dtype=dtype, most=most, batches=batches)
    between = [size for size in range(1, profile.batch_size + 1) if size not in batches]
    if session.provider not in GPU:
        _run_each(session, profile, between)
        return profile
    # On a GPU some sizes have faster kernels than smaller ones. Measuring all sizes is quick and finds them.
    batches.update((size, _time(session, _values(size, shape, dtype))) for size in between)
    return msgspec.structs.replace(profile, batches=dict(sorted(batches.items())))


def doubling(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`, which is the last one."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def warm(session: Session, shape: Shape, most: int) -> None:
    """Run each batch size of a new shape once, the largest first, whose memory suffices for the others.

    On the CPU, as many as fit into a second.
    """
    document = session.document
    assert document is not None
    begin = time.perf_counter()
    for size in range(most, 0, -1):
        _run(session, _values(size, shape, document.takes.dtype))
        if session.provider not in GPU and time.perf_counter() - begin > _WARM_UP:
            break


def _poor(batches: Mapping[int, BatchTime], size: int) -> bool:
    half = batches.get(size // 2)
    return half is not None and 2 * half.seconds < _GAIN * batches[size].seconds


def _seconds(batch: BatchTime) -> float:
    return batch.seconds


def _other_layout(machine: Machine, this: Machine) -> bool:
    """Whether it is this machine with another number of sessions, whose profiles are kept for comparison."""
    same = msgspec.structs.replace(machine, instances=this.instances, threads=this.threads)
    return machine.instances != this.instances and same == this


def _again(session: Session, profile: Profile) -> Profile:
    _run_each(session, profile, range(1, profile.batch_size + 1))
    return profile


def _run_each(session: Session, profile: Profile, sizes: Iterable[int]) -> None:
    times = RunTimes(max(profile.batches), profile.seconds)
    spent = 0.0
    for size in sizes:
        spent += times.predict(size)
        if spent < _WARM_UP or session.provider in GPU:
            _run(session, np.zeros((size, *profile.shape), profile.dtype))


def _time(session: Session, values: NDArray[np.generic]) -> BatchTime:
    spans: list[BatchTime] = []
    while len(spans) <= _RUNS and sum(span.seconds for span in spans) < _SECONDS:
        start, cpu_start = time.perf_counter(), time.process_time()
        _run(session, values)
        spans.append(BatchTime(time.perf_counter() - start, time.process_time() - cpu_start))
    # The first run of a shape allocates, and on CUDA chooses kernels. A long run is not repeated for that.
    spans = spans[1:] or spans
    return BatchTime(median(span.seconds for span in spans), median(span.cpu_seconds for span in spans))


def _run(session: Session, values: NDArray[np.generic]) -> None:
    try:
        session.run([values])
    except DeviceLost:
        raise
    except Exception as error:  # such as insufficient memory: reported to the operator at load, not to a caller
        log.warning("a batch failed before serving", exc_info=error)
        size, *shape = values.shape
        text = f"a batch of {size} of {'x'.join(map(str, shape))} failed; the log has the reason"
        raise BadModelFile(text + ("; want a smaller batching.max_batch_size" if size > 1 else "")) from error


def _values(size: int, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    return np.random.default_rng(_SEED).integers(0, 256, (size, *shape)).astype(dtype)
