"""Profiles: batch times of one network on one machine, in a file next to the model with one profile per input shape."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from convoy.service.engine.providers import CPU, GPU
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.session import VERSION
from convoy.service.machine import cores
from convoy.service.repository import PROFILE_FILE

log = logging.getLogger(__name__)

FILE = PROFILE_FILE

_FASTER = 0.97  # maximum time relative to the unpadded batch: a smaller gain is not worth the copy

_CPU_INFORMATION = Path("/proc/cpuinfo")
_GPU_INFORMATION = Path("/proc/driver/nvidia/gpus")  # one folder per GPU, named by its bus address


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that determines the time of a batch. A profile is valid only while none of it has changed."""

    device: str
    provider: str
    threads: int  # of onnxruntime, within one run
    instances: int = 1  # sessions that run concurrently
    settings: str = ""  # of the provider, as far as they affect the time
    onnxruntime: str
    model_sha256: str


class BatchTime(msgspec.Struct, frozen=True):
    """Medians of a few runs: wall-clock seconds, and CPU seconds of all threads."""

    seconds: float
    cpu_seconds: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Batch times by size, with all instances running such a batch.

    Batch sizes stop where throughput levels off, or at `most`. `shape` and `dtype` are the input's, without N.
    """

    machine: Machine
    shape: tuple[int, ...]
    dtype: str
    most: int
    batches: dict[int, BatchTime]
    revised: bool = False  # whether batches while serving have contradicted the measurement before it

    @property
    def seconds(self) -> dict[int, float]:
        """By batch size, each padded where that is faster."""
        padding = self.padding
        return {size: self.batches[padding.get(size, size)].seconds for size in self.batches}

    @property
    def padding(self) -> dict[int, int]:
        """Batch size -> larger size that it is padded to because a GPU runs it faster.

        GPU kernels suit some sizes better than smaller ones. On a CPU, such differences are noise.
        """
        if self.machine.provider not in GPU:
            return {}
        return padding({size: batch.seconds for size, batch in self.batches.items()})

    @property
    def key(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """The shape in a batcher's Key."""
        return ((self.shape, self.dtype),)

    @property
    def batch_size(self) -> int:
        """Images in the most efficient batch, regardless of deadlines."""
        largest = max(self.batches)
        return RunTimes(largest, self.seconds).efficient(largest)


def padding(seconds: Mapping[int, float]) -> dict[int, int]:
    """Batch size -> the fastest larger measured size, if that takes clearly less time.

    The time of an unmeasured size is interpolated linearly.
    """
    sizes = sorted(seconds)
    padded = {}
    for size in range(sizes[0], sizes[-1]):
        own = float(np.interp(size, sizes, [seconds[each] for each in sizes]))
        best = min((each for each in sizes if each > size), key=lambda each: seconds[each])
        if seconds[best] < _FASTER * own:
            padded[size] = best
    return padded


def revised(profile: Profile, seconds: Mapping[int, float]) -> Profile:
    """The profile with the times of batches that were measured while serving, by batch size."""
    batches = {size: _scaled(profile, size, profile.padding.get(size, size), seconds) for size in profile.batches}
    for size in seconds.keys() - batches.keys():
        nearest = min(profile.batches, key=lambda each: abs(each - size))
        share = profile.batches[nearest].cpu_seconds / profile.batches[nearest].seconds
        batches[size] = BatchTime(seconds[size], share * seconds[size])
    return msgspec.structs.replace(profile, batches=dict(sorted(batches.items())), revised=True)


def _scaled(profile: Profile, size: int, padded: int, seconds: Mapping[int, float]) -> BatchTime:
    """The time of a size, changed like that of the size that it is padded to: it never ran unpadded."""
    factor = seconds[padded] / profile.batches[padded].seconds if padded in seconds else 1.0
    return BatchTime(factor * profile.batches[size].seconds, factor * profile.batches[size].cpu_seconds)


def machine(model: Path, provider: str, device: int, threads: int, instances: int = 1, settings: str = "") -> Machine:
    """This machine, for a model file on an onnxruntime provider; `threads` 0 means one per core."""
    state = model.stat()
    return Machine(
        instances=instances,
        settings=settings,
        device=_cpu_name() if provider == CPU else _gpu_name(device),
        provider=provider,
        threads=threads or cores(),
        onnxruntime=VERSION,
        model_sha256=_digest(model, (state.st_ino, state.st_size, state.st_mtime_ns)),
    )


def read(folder: Path) -> list[Profile]:
    """The profiles in a version's folder, one per shape; empty without a file that this version can read."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=list[Profile])
    except (OSError, msgspec.MsgspecError):
        return []


def write(folder: Path, profiles: Sequence[Profile]) -> None:
    """Write the profiles to a version's folder atomically. Raises OSError, such as for a read-only repository."""
    incoming = folder / f".{FILE}-{os.getpid()}"
    try:
        incoming.write_bytes(msgspec.json.format(msgspec.json.encode(profiles)) + b"\n")
        incoming.replace(folder / FILE)
    finally:
        incoming.unlink(missing_ok=True)


def replace(folder: Path, changed: Sequence[Profile]) -> None:
    """Save profiles in place of those of the same machine, shape and maximum."""
    kept = [each for each in read(folder) if all(_entry(each) != _entry(other) for other in changed)]
    save(folder, [*changed, *kept])


def save(folder: Path, profiles: Sequence[Profile]) -> None:
    """As `write`, but logs an error: a version serves without a stored profile as well."""
    try:
        write(folder, profiles)
    except OSError as error:
        log.info("the profile of %s is not saved: %s", "/".join(folder.parts[-2:]), error.strerror)


def _entry(profile: Profile) -> tuple[Machine, tuple[int, ...], int]:
    return profile.machine, profile.shape, profile.most


@lru_cache(maxsize=1)
def _digest(model: Path, state: tuple[int, int, int]) -> str:
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cpu_name() -> str:
    try:
        lines = _CPU_INFORMATION.read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {len(os.sched_getaffinity(0))} cores"


def _gpu_name(device: int) -> str:
    try:
        text = sorted(_GPU_INFORMATION.iterdir())[device].joinpath("information").read_text()
    except (OSError, IndexError):
        return f"CUDA device {device}"
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model:")]
    return models[0] if models else f"CUDA device {device}"
