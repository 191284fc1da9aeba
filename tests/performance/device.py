"""What a device does beside being fast: how busy it is, what memory it takes, whether it answers as the CPU does."""

import subprocess
import threading
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import numpy as np

from convoy.service import metadata
from convoy.service.engine import session as sessions
from tests.performance import load
from tests.performance.figure import QUIET, SEGMENT, Figure, segment_request, serving
from tests.service.running import Server

_ASK = ["nvidia-smi", "--format=csv,noheader,nounits"]
_CALLERS = 16
_STEP = 16  # pixels between one mixed size and the next
_GROWTH = 1.1  # of the memory from a tenth of the images on
_CLOSE = 0.02  # between probabilities: CUDA's convolutions compute with ten bits of mantissa (TF32)


class Watch:
    """How busy the GPU is while this is entered, over all times; says nothing where there is none to ask."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._over.clear()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._over.set()
        self._thread.join()

    def __str__(self) -> str:
        return f"; GPU busy {median(self._shares):.0f} % of the time" if self._shares else ""

    def _watch(self) -> None:
        while (share := _asked("utilization.gpu")) is not None:
            self._shares.append(share)
            if self._over.wait(0.2):
                return


def mixed_sizes(file: Path, provider: str, images: int, largest: int) -> Figure:
    """What memory so many images take, each of another size up to `largest` pixels a side."""
    random = np.random.default_rng(0)
    sizes = _STEP * random.integers(2, max(3, largest // _STEP + 1), (images, 2))
    settings = (f"engine.provider={provider}",)
    with serving(file.parents[2], *settings) as server:
        tenth = max(1, images // 10)
        _send(server, sizes[:tenth])
        before = _memory(server)
        _send(server, sizes[tenth:])
        after = _memory(server)
    grown = max(now / then for now, then in zip(after, before, strict=True))
    shown = ", ".join(f"{now:,.0f} MiB of the {of}" for now, of in zip(after, ("engine", "GPU"), strict=False))
    what = f"memory after {images:,} images of mixed sizes over that after a tenth of them"
    return Figure("G4", what, f"<= {_GROWTH}", f"{grown:.2f}; {shown}", grown <= _GROWTH)


def parity(file: Path, provider: str) -> Figure:
    """Answers of the device beside those of the CPU, on random images."""
    there, here = (sessions.load(file, name, 0, 0) for name in (provider, "cpu"))
    height, width, channels = metadata.input_shape(there.document) if there.document is not None else (0, 0, 0)
    images = np.random.default_rng(0).integers(0, 256, (32, height, width, channels), np.uint8)
    theirs, ours = there.run([images])[0], here.run([images])[0]
    apart = float(np.abs(theirs - ours).max())
    same = float((theirs.argmax(1) == ours.argmax(1)).mean())
    what = "largest difference of a probability between the device and the CPU, single precision"
    return Figure("G5", what, f"<= {_CLOSE:g}", f"{apart:.1e}; the same class for {same:.1%}", apart <= _CLOSE)


def hidden(repository: Path) -> Figure:
    """A model that is told to use CUDA where no device is to be seen."""
    settings = [*QUIET, "engine.provider=cuda"]
    with Server(repository, settings, wait=False, environment={"CUDA_VISIBLE_DEVICES": ""}) as server:
        server.wait_for_log("not ready: no model serves")
        status, _ = server.get(f"{server.http}/readyz")
    return Figure("G6", "readiness with engine.provider=cuda and all devices hidden", "503", str(status), status == 503)


def _send(server: Server, sizes: np.ndarray) -> None:  # type: ignore[type-arg]
    requests = (segment_request((int(height), int(width))) for height, width in sizes)
    answers = load.each(server.grpc, SEGMENT, requests, _CALLERS)
    if answers.errors:
        raise RuntimeError(f"{len(answers.errors)} requests failed, the first with {answers.errors[0].name}")


def _memory(server: Server) -> list[float]:
    """MiB of the engine, and of the GPU where there is one."""
    pages = int(Path(f"/proc/{server.children()['engine']}/statm").read_text().split()[1])
    device = _asked("memory.used")
    return [pages * 4096 / 2**20, *([] if device is None else [device])]


def _asked(what: str) -> float | None:
    try:
        answer = subprocess.run([*_ASK, f"--query-gpu={what}"], capture_output=True, check=True, text=True, timeout=10)
        return float(answer.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
