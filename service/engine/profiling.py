"""Measures what batches of a network take before it serves, and runs every size that it will be asked for: no request
is the first of its batch size."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from service.engine import profile as profiles
from service.engine.profile import BatchTime, Machine, Profile
from service.engine.run_times import RunTimes
from service.engine.session import CPU, Session, input_shape

log = logging.getLogger(__name__)

_SEED = 1
_RUNS = 5  # of each measured size, behind its first
_SECONDS = 0.25  # for the runs of one size; one run is made in any case
_LONG = 0.05  # seconds; so long a batch is measured too exactly for noise to hide what a larger one brings
_GAIN = 1.01  # of the throughput of half the size: a batch twice as large that brings less is not worth trying
_WARM_UP = 1.0  # second, on the CPU, for sizes that are not measured: their memory has been taken for a larger one


def prepare(session: Session, file: Path, most: int, device: int, threads: int) -> Profile | None:
    """The profile of a session for batches of up to `most` images: the one beside the model file where it was made
    on this very machine, else a new one, which is put there. Each size that will be used has run then.

    None where the inputs have no size of their own.
    """
    document = session.document
    if document is None or document.takes.free:
        return None
    machine = profiles.machine(file, session.provider, device, threads)
    known = profiles.read(file.parent)
    if known is not None and (known.machine, known.most) == (machine, most):
        _run_each(session, known, range(1, known.batch_size + 1))
        return known
    made = measure(session, machine, most)
    try:
        profiles.write(file.parent, made)
    except OSError as error:
        log.info("the profile of %s is not kept: %s", "/".join(file.parts[-3:-1]), error.strerror)
    return made


def measure(session: Session, machine: Machine, most: int) -> Profile:
    """Run batches of 1, 2, 4, ... up to `most` images, as long as more images in a batch bring more of them a second,
    and then each size between that will be used. The session takes inputs of one size."""
    document = session.document
    assert document is not None
    shape, dtype = input_shape(document), document.takes.dtype
    batches: dict[int, BatchTime] = {}
    poor = 0
    for size in _doubling(most):
        batches[size] = _time(session, _values(size, shape, dtype))
        half = batches.get(size // 2)
        poor = poor + 1 if half is not None and 2 * half.seconds < _GAIN * batches[size].seconds else 0
        if poor == 2 or (poor and batches[size].seconds > _LONG):
            break
    made = Profile(machine=machine, shape=shape, dtype=dtype, most=most, batches=batches)
    _run_each(session, made, (size for size in range(1, made.batch_size + 1) if size not in batches))
    return made


def _run_each(session: Session, profile: Profile, sizes: Iterator[int] | range) -> None:
    times = RunTimes(max(profile.batches), profile.seconds)
    spent = 0.0
    for size in sizes:
        spent += times.predict(size)
        if spent < _WARM_UP or session.provider != CPU:
            session.run([_values(size, profile.shape, profile.dtype)])


def _doubling(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def _time(session: Session, values: NDArray[np.generic]) -> BatchTime:
    spans: list[BatchTime] = []
    while len(spans) <= _RUNS and sum(span.seconds for span in spans) < _SECONDS:
        start, cpu_start = time.perf_counter(), time.process_time()
        session.run([values])
        spans.append(BatchTime(time.perf_counter() - start, time.process_time() - cpu_start))
    # The first of its shape allocates, and on CUDA chooses its kernels; a long one is not made twice for that.
    spans = spans[1:] or spans
    return BatchTime(median(span.seconds for span in spans), median(span.cpu_seconds for span in spans))


def _values(size: int, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    return np.random.default_rng(_SEED).integers(0, 256, (size, *shape)).astype(dtype)
