"""R6: whatever callers do, the processes of a server hold no more afterwards than before."""

import random
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability import faults
from tests.reliability.injection import Board, environment
from tests.reliability.memory import MIB, Held, held
from tests.reliability.neighbours import DISTINCT, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import until
from tests.service import networks
from tests.service.calls import infer_request, method, stream
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import DATA, END_STREAM, RST_STREAM, Raw, frame, message
from tests.service.running import Server
from tests.service.test_vision import encoded

_CALLERS = 4
_PARTS = 8  # of the trials; after each the server is idle and is looked at
_WARM = 3  # parts that do not count: pools, caches and the allocator fill
_SWAP = 2.0  # seconds for which a version serves
_SLOPE = 1 * MIB  # bytes per million requests
# Bytes in all counted parts, if each grew by as much as the median one: less cannot be told from the allocator's noise.
_GROWTH = 4 * MIB
_IDLE = 20.0  # seconds within which everything has to be given back
_TRANSPORTS = ("nghttp2", "grpcio")

Kind = Callable[[grpc.Channel, str, random.Random], int]  # makes some requests; returns how many


def _image(chance: random.Random) -> pb.Image:
    image = grey(chance.randrange(DISTINCT))
    if chance.random() < 0.5:
        return pb.Image(encoded=encoded(image))
    return pb.Image(raw=pb.RawImage(pixels=image.tobytes(), height_px=8, width_px=8, channels=1))


def _scene(chance: random.Random) -> pb.SegmentRequest:
    height, width = chance.choice([32, 50, 64, 100]), chance.choice([32, 48, 72])
    raw = pb.RawImage(pixels=bytes(height * width * 3), height_px=height, width_px=width, channels=3)
    form: Any = chance.choice([pb.MASK_FORMAT_RAW, pb.MASK_FORMAT_PNG, pb.MASK_FORMAT_RLE])
    return pb.SegmentRequest(model="colours", images=[pb.Image(raw=raw)], format=form, with_confidence=True)


def _labels(chance: random.Random, model: str = "letters") -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=[_image(chance) for _ in range(chance.choice([1, 1, 1, 5]))])


def _tensor(chance: random.Random) -> inference_pb2.ModelInferRequest:
    rows = chance.randint(1, 4)
    if chance.random() < 0.3:  # the size of its answer is not known beforehand
        return infer_request("compressor", np.linspace(-1, 1, 50 * rows, dtype=np.float32))
    if chance.random() < 0.3:
        return infer_request("waves", np.zeros((rows, 3, chance.randint(5, 60)), np.float32), "waveform")
    return infer_request("doubler", np.ones((rows, 4), np.float32))


def _end(call: Any) -> None:
    with suppress(grpc.RpcError, grpc.FutureCancelledError):
        call.result()


def _good(channel: grpc.Channel, target: str, chance: random.Random) -> int:
    calls = [method(channel, "Classify").future(_labels(chance)) for _ in range(12)]
    calls += [method(channel, "ModelInfer").future(_tensor(chance)) for _ in range(12)]
    calls += [method(channel, "Segment").future(_scene(chance)) for _ in range(4)]
    for call in calls:
        _end(call)
    return len(calls)


def _streams(channel: grpc.Channel, target: str, chance: random.Random) -> int:
    letters = [pb.ClassifyStreamRequest(id=number, request=_labels(chance)) for number in range(30)]
    scenes = [pb.SegmentStreamRequest(id=number, request=_scene(chance)) for number in range(4)]
    tensors = [_tensor(chance) for _ in range(30)]
    names = (("ClassifyStream", letters), ("SegmentStream", scenes), ("ModelStreamInfer", tensors))
    calls = [stream(channel, name)(iter(messages), timeout=60) for name, messages in names]
    if chance.random() < 0.3:
        next(calls[0], None)
        calls[0].cancel()
    for call in calls:
        with suppress(grpc.RpcError):
            list(call)
    return len(letters) + len(scenes) + len(tensors)


def _questions(channel: grpc.Channel, target: str, chance: random.Random) -> int:
    asked: dict[str, Any] = {
        "ListModels": pb.ListModelsRequest(),
        "ServerLive": inference_pb2.ServerLiveRequest(),
        "ServerReady": inference_pb2.ServerReadyRequest(),
        "ServerMetadata": inference_pb2.ServerMetadataRequest(),
        "ModelReady": inference_pb2.ModelReadyRequest(name="letters"),
        "ModelMetadata": inference_pb2.ModelMetadataRequest(name="doubler"),
        "ModelConfig": inference_pb2.ModelConfigRequest(name="doubler"),
        "ModelStatistics": inference_pb2.ModelStatisticsRequest(name="doubler"),
        "RepositoryIndex": inference_pb2.RepositoryIndexRequest(),
        "RepositoryModelLoad": inference_pb2.RepositoryModelLoadRequest(),
    }
    if chance.random() < 0.8:  # it reads the metrics of all processes
        del asked["ModelStatistics"]
    for name, request in asked.items():
        _end(method(channel, name).future(request))
    health = health_pb2_grpc.HealthStub(channel)
    health.Check(health_pb2.HealthCheckRequest())
    watch = health.Watch(health_pb2.HealthCheckRequest())
    next(watch)
    watch.cancel()
    return len(asked) + 2


def _bad(channel: grpc.Channel, target: str, chance: random.Random) -> int:
    broken = [
        ("Classify", pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=chance.randbytes(200))])),
        ("Classify", pb.ClassifyRequest(model=f"made-up-{chance.random()}", images=[_image(chance)])),
        ("Classify", pb.ClassifyRequest(model="letters")),
        ("Classify", chance.randbytes(300)),
        ("Segment", _labels(chance).SerializeToString()),
        ("ModelInfer", infer_request("doubler", np.ones((1, 5), np.float32))),
        ("ModelInfer", infer_request("doubler", np.ones((1, 4), np.float32), f"x{chance.random()}")),
        ("ModelInfer", infer_request("letters", np.full((1, 8, 8), 1, np.uint8), "image", "UINT8")),
    ]
    for name, request in broken:
        _end(method(channel, name).future(request))
    return len(broken)


def _impatient(channel: grpc.Channel, target: str, chance: random.Random) -> int:
    calls = [method(channel, "Classify").future(_labels(chance)) for _ in range(12)]
    calls += [method(channel, "Segment").future(_scene(chance)) for _ in range(4)]
    for call in calls:
        call.cancel()
    late = [method(channel, "Classify").future(_labels(chance), timeout=chance.uniform(5e-4, 5e-3)) for _ in range(12)]
    for call in late:
        _end(call)
    return len(calls) + len(late)


def _hostile(channel: grpc.Channel, target: str, chance: random.Random) -> int:
    host, _, port = target.rpartition(":")
    with suppress(OSError), Raw((host, int(port)), greet=chance.random() < 0.9) as caller:
        body = message(_labels(chance).SerializeToString())
        for call in range(10):
            number = 2 * call + 1
            path = chance.choice(["/convoy.v1.Vision/Classify", "/convoy.v1.Vision/ClassifyStream", "/no/thing"])
            caller.send(caller.headers(number, wire.request(path)))
            caller.send(frame(DATA, 0, number, body[: chance.randrange(len(body) + 1)]))
            if chance.random() < 0.5:
                caller.send(frame(RST_STREAM, 0, number, struct.pack(">I", 8)))
            elif chance.random() < 0.5:
                caller.send(frame(DATA, END_STREAM, number))
        if chance.random() < 0.3:
            caller.send(chance.randbytes(100))
    return 10


_KINDS: Sequence[Kind] = (_good, _good, _streams, _streams, _questions, _bad, _impatient, _hostile)


def _call(server: Server, seed: int, requests: int) -> int:
    """One caller, which connects anew for each kind of thing that it does. Returns how many requests it made."""
    chance, made = random.Random(seed), 0
    while made < requests:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            made += chance.choice(_KINDS)(channel, server.grpc, chance)
        if chance.random() < 0.02:
            with suppress(OSError):  # too many scrape at once, or one takes too long
                server.get(f"{server.http}/readyz")
                server.get(f"{server.metrics}/metrics")
    return made


class _Swaps:
    """New versions of a model, one after the other, while the block lasts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._version = 1
        self._over = threading.Event()

    def _run(self) -> None:
        while not self._over.wait(_SWAP):
            self._version += 1
            networks.save(networks.classifier(scale=1 + self._version / 1000), self._root, "letters", self._version)
            shutil.rmtree(self._root / "letters" / str(self._version - 2), ignore_errors=True)

    def __enter__(self) -> "_Swaps":
        self._over.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _look(server: Server) -> dict[str, Held]:
    """What each process holds, by a name that it keeps."""
    found = {"supervisor": held(server.process.pid)}
    for kind in ("engine", "frontend"):
        found |= {f"{kind} {number}": held(pid) for number, pid in enumerate(sorted(server.processes(kind)))}
    return found


def _counts(seen: Mapping[str, Held], folder: Path) -> dict[str, int]:
    names = ("descriptors", "threads", "children", "mappings")
    counts = {f"{name} of {process}": getattr(each, name) for process, each in seen.items() for name in names}
    return counts | {"temporary files": sum(1 for _ in folder.rglob("*"))}


def _return_memory(server: Server, board: Board) -> None:
    """Lets the processes return what their allocators keep: whatever came last, they hold what is in use."""
    for pid in (*server.processes("engine"), *server.processes("frontend")):
        before = int(board.cells[faults.RETURNED])
        board.cells[faults.RETURN] = pid
        assert until(lambda before=before: int(board.cells[faults.RETURNED]) > before), f"process {pid} returns nothing"


def _at_rest(server: Server, folder: Path, wanted: Mapping[str, int], patience: float) -> dict[str, int]:
    """Looks until the counts are the wanted ones, or what they stay at."""
    end = time.monotonic() + patience
    before: dict[str, int] = {}
    while True:
        counts = _counts(_look(server), folder)
        idle = False
        with suppress(OSError):
            idle = not server.total("convoy_requests_in_flight") and not server.total("convoy_slots")
        same = all(counts[name] <= most for name, most in wanted.items()) if wanted else counts == before
        if (idle and same) or time.monotonic() > end:
            return counts
        before = counts
        threading.Event().wait(0.3)


def _slope(requests: Sequence[int], nbytes: Sequence[int]) -> tuple[float, float]:
    """Returns bytes per request, by Theil and Sen, and what nine of ten pairs of points lie above."""
    points = list(zip(requests, nbytes, strict=True))
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2))
    return median(slopes), slopes[len(slopes) // 10]


def _parts(trials: int) -> Iterator[int]:
    for part in range(_PARTS):
        yield trials * (part + 1) // _PARTS - trials * part // _PARTS


def _soak(trials: int, seed: int, fault: Callable[[str, Board], None], patience: float = _IDLE) -> Tally:
    count = Count()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_CALLERS) as callers:
        root, board = Path(folder) / "models", Board(Path(folder) / "board")
        for name in ("letters", "doubler", "compressor", "waves"):
            made = networks.classifier if name == "letters" else getattr(networks, name)
            networks.save(made(), root, name)
        networks.save(networks.segmenter(), root, "colours")
        settings = [
            "server.lame_duck_seconds=0",
            "server.frontends=2",
            f"server.transport={_TRANSPORTS[seed % 2]}",
            "server.keep_metrics_seconds=1",
            "repository.poll_seconds=0.5",
            "engine.check_seconds=1",
        ]
        # Not in /dev/shm, where other servers of the machine come and go.
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        with Server(root, settings, environment={**environment(fault, board), "TMPDIR": str(temporary)}) as server:
            swaps = _Swaps(root)
            done: list[int] = []
            seen: list[dict[str, Held]] = []
            wanted: dict[str, int] = {}
            for part, requests in enumerate(_parts(trials)):
                with swaps:
                    begun = [
                        callers.submit(_call, server, (seed << 20) + part * _CALLERS + each, requests // _CALLERS)
                        for each in range(_CALLERS)
                    ]
                    made = sum(call.result() for call in begun)
                count.good(made)
                last = wanted if part == _PARTS - 1 else {}
                counts = _at_rest(server, temporary, last, patience)
                _return_memory(server, board)  # once connections have gone, and what they held
                if part == _WARM - 1:
                    wanted = counts
                if part >= _WARM - 1:
                    done.append(count.trials)
                    seen.append(_look(server))
            for name, most in wanted.items():
                if counts[name] > most:
                    count.also_bad(f"seed {seed}: {counts[name]} {name}, {most} after the warm-up")
            for process in seen[0]:
                _judge(count, seed, process, done, [each[process].rss_bytes for each in seen if process in each])
            for kind in ("engine", "frontend"):
                if restarts := server.total(f"convoy_{kind}_restarts_total"):
                    count.also_bad(f"seed {seed}: {restarts:g} restarts of a process ({kind})")
    return count.tally()


def _judge(count: Count, seed: int, process: str, done: Sequence[int], nbytes: Sequence[int]) -> None:
    slope, least = _slope(done[-len(nbytes) :], nbytes)
    grown = nbytes[-1] - nbytes[0]
    count.see(f"MiB that the {process.split(maxsplit=1)[0]} grew", grown / MIB)
    count.see("MiB per million requests", slope * 1e6 / MIB)
    # What leaks does so in each part. The interpreter's own allocator takes some MiB now and then, once.
    steady = (len(nbytes) - 1) * median(b - a for a, b in pairwise(nbytes))
    if steady > _GROWTH and least * 1e6 > _SLOPE:
        per_million = f"{slope * 1e6 / MIB:.0f} MiB per million requests"
        count.also_bad(f"seed {seed}: the {process} grew by {grown / MIB:.1f} MiB, {per_million}")


def run(trials: int, seed: int) -> Tally:
    """Traffic of all kinds, valid and hostile, beside new versions of a model."""
    return _soak(trials, seed, faults.returning)


def control(seed: int) -> Tally:
    """The same with a front end that keeps a little of each request, and a descriptor now and then."""
    tally = _soak(2400, seed, faults.leak, patience=5)
    found = {kind: any(kind in example for example in tally.examples) for kind in ("MiB", "descriptors")}
    return tally if all(found.values()) else Tally(tally.trials)


PROBE = Probe(
    number="R6",
    what="Memory, descriptors, threads, processes and shared memory stay what they are: at most 1 MiB per million "
    "requests of all kinds, where more than 4 MiB can be told from noise.",
    unit="requests of all kinds, valid and hostile",
    wanted=1_000_000,
    chunk=30_000,
    run=run,
    control=control,
)
