"""A profile: what batches of one network take on one machine, and the file beside the model that keeps one for each
shape of its inputs."""

import hashlib
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

FILE = PROFILE_FILE

_FASTER = 0.97  # of the time of a batch as it is: what padding has to reach to be worth the copy

_CPU_INFORMATION = Path("/proc/cpuinfo")
_GPU_INFORMATION = Path("/proc/driver/nvidia/gpus")  # one folder a GPU, named by its place on the bus


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what a batch takes. Where any of it has changed, a profile says nothing any more."""

    device: str
    provider: str
    threads: int  # onnxruntime's, within one run
    instances: int = 1  # sessions that run at the same time
    settings: str = ""  # of the provider, as far as they decide
    onnxruntime: str
    model_sha256: str


class BatchTime(msgspec.Struct, frozen=True):
    """Medians of a few runs: seconds from start to end, and of CPU time of all threads."""

    seconds: float
    cpu_seconds: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """`batches` by size, while all instances run such a batch; the largest is the one from which on more images in a
    batch bring no more of them a second, or `most`. `shape` and `dtype` are the input's, without N."""

    machine: Machine
    shape: tuple[int, ...]
    dtype: str
    most: int
    batches: dict[int, BatchTime]

    @property
    def seconds(self) -> dict[int, float]:
        """Of batches by size, each padded where that is faster."""
        padding = self.padding
        return {size: self.batches[padding.get(size, size)].seconds for size in self.batches}

    @property
    def padding(self) -> dict[int, int]:
        """By size, the larger one that a batch is padded to, where a GPU runs that one faster: it has kernels that suit
        some sizes better than smaller ones. On a CPU, what looks like it is noise."""
        if self.machine.provider not in GPU:
            return {}
        return padding({size: batch.seconds for size, batch in self.batches.items()})

    @property
    def key(self) -> tuple[tuple[tuple[int, ...], np.dtype[np.generic]], ...]:
        """The shape in a batcher's Key."""
        return ((self.shape, np.dtype(self.dtype)),)

    @property
    def batch_size(self) -> int:
        """Images of the most efficient batch, deadlines aside."""
        largest = max(self.batches)
        return RunTimes(largest, self.seconds).efficient(largest)


def padding(seconds: Mapping[int, float]) -> dict[int, int]:
    """By batch size, the fastest of the larger measured ones, where it takes clearly less time; what a size takes that
    was not measured lies on a straight line between those that were."""
    sizes = sorted(seconds)
    found = {}
    for size in range(sizes[0], sizes[-1]):
        own = float(np.interp(size, sizes, [seconds[each] for each in sizes]))
        best = min((each for each in sizes if each > size), key=lambda each: seconds[each])
        if seconds[best] < _FASTER * own:
            found[size] = best
    return found


def machine(model: Path, provider: str, device: int, threads: int, instances: int = 1, settings: str = "") -> Machine:
    """This machine, for a model file on an onnxruntime provider; `threads` 0 are one per core."""
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
    """The profiles in a version's folder, of a shape each; none where no file is there that this version can read."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=list[Profile])
    except (OSError, msgspec.MsgspecError):
        return []


def write(folder: Path, profiles: Sequence[Profile]) -> None:
    """Put them into a version's folder, whole or not at all. Raises OSError, as where the repository is read-only."""
    incoming = folder / f".{FILE}-{os.getpid()}"
    try:
        incoming.write_bytes(msgspec.json.format(msgspec.json.encode(profiles)) + b"\n")
        incoming.replace(folder / FILE)
    finally:
        incoming.unlink(missing_ok=True)


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
