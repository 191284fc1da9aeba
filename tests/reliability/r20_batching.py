"""R20: an image gets the same answer whatever else is in its batch, and whichever engine runs it."""

import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from convoy.service import metadata
from convoy.service.client.client import Client
from convoy.service.client.results import Classification, Segmentation
from convoy.service.client.tensors import TensorClient
from convoy.service.engine.runner import compute, finish
from convoy.service.engine.session import Session, load
from convoy.service.ipc.channel import Answer, Request
from convoy.service.ipc.slots import Arena, Span
from tests.reliability.probe import Count, Probe, Tally
from tests.service import networks
from tests.service.running import Server

_IMAGES = 48  # of each size
_MOST = 32  # rows of a batch
_DIFFERENCE = 1e-5  # of an answer, relative to its largest value
_NEAR_TIES = 1e-3  # share of pixels between classes that are as good as equal: rounding decides
_SERVED = 20  # of so many batchings, one goes over a server
_SETTINGS = ["engine.devices=[0, 1]", "engine.provider=cpu", "engine.instances=2", "server.lame_duck_seconds=0"]


class _Network(NamedTuple):
    name: str
    model: onnx.ModelProto
    sizes: tuple[tuple[int, int], ...]  # (height, width) of its images


_NETWORKS = (
    _Network("residual", networks.residual(), ((16, 16),)),
    _Network("dense", networks.dense(), ((16, 16), (24, 20), (8, 32))),
)


class _Known:
    """A network, images, and what each gets alone. The session runs what is put together as an engine does."""

    def __init__(self, network: _Network, folder: Path) -> None:
        self.name, self.sizes, self.worst = network.name, network.sizes, 0.0
        self.sessions = [load(networks.save(network.model, folder, network.name), "cpu", 0, each) for each in (1, 2)]
        channels = self.sessions[0].inputs[0].shape[-1] or 1
        rng = np.random.default_rng(1)
        self.images = {size: rng.integers(0, 256, (_IMAGES, *size, channels), dtype=np.uint8) for size in network.sizes}
        self.alone = {
            (size, place): self.sessions[0].run([images[place : place + 1]])[0][0]
            for size, images in self.images.items()
            for place in range(_IMAGES)
        }

    def difference(self, size: tuple[int, int], place: int, found: NDArray[np.generic]) -> str:
        """Returns how an answer differs from the one to the same image alone; "" if it does not."""
        expected = self.alone[size, place]
        if found.shape != expected.shape:
            return f"has the shape {found.shape}, alone {expected.shape}"
        if expected.dtype.kind != "f":
            share = float((found != expected).mean())
            return f"differs at {share:.2%} of its pixels" if share > _NEAR_TIES else ""
        values, alone = found.astype(np.float64), expected.astype(np.float64)
        relative = float(np.abs(values - alone).max() / np.abs(alone).max())
        self.worst = max(self.worst, relative)
        if not relative <= _DIFFERENCE or values.argmax() != alone.argmax():
            return f"differs by {relative:.2e}"
        return ""


def _requests(arena: Arena, known: _Known, size: tuple[int, int], groups: Sequence[Sequence[int]]) -> list[Request]:
    made = []
    for number, places in enumerate(groups):
        images = known.images[size][list(places)]
        row = known.alone[size, 0]
        offset, _ = arena.allocate(images.nbytes)
        room, _ = arena.allocate(len(places) * row.nbytes)
        span = Span(0, offset, images.nbytes, "uint8", images.shape)
        arena.mapping.array(span)[...] = images
        made.append(
            Request(
                id=number,
                source=0,
                rows=len(places),
                arrived=0.0,
                model="",
                version=1,
                inputs=(span,),
                outputs=(Span(0, room, len(places) * row.nbytes, "uint8", ()),),
                memory=arena.mapping,
            )
        )
    return made


def _groups(chance: random.Random) -> list[list[int]]:
    """Images of a batch, by request: any, in any order, some of them twice."""
    rows = chance.randint(1, _MOST)
    places = [chance.randrange(_IMAGES) for _ in range(rows)]
    cuts = sorted(chance.sample(range(1, rows), chance.randint(0, min(rows - 1, 8)))) if rows > 1 else []
    return [places[begin:end] for begin, end in zip([0, *cuts], [*cuts, rows], strict=True)]


def _batching(known: _Known, chance: random.Random, arena: Arena) -> list[str]:
    """One batch, put together and shared out by the engine's code, with padding or without."""
    session: Session = chance.choice(known.sessions)
    size, groups = chance.choice(known.sizes), _groups(chance)
    rows = sum(map(len, groups))
    requests = _requests(arena, known, size, groups)
    padded = rows + chance.choice([0, 0, 1, 3])
    session.padding = {tuple((span.shape[1:], span.dtype) for span in requests[0].inputs): {rows: padded}}
    # What an earlier batch has left there must not show.
    for buffer in session.input_buffers:
        buffer.array((_MOST + 3, *known.images[size].shape[1:]), np.dtype(np.uint8))[...] = 255
    wrong = []
    for request, places, (end, _) in zip(requests, groups, finish(compute(session, requests)).ended, strict=True):
        if not isinstance(end, Answer):
            return [f"{end}"]
        values = arena.mapping.array(end.outputs[0])
        for row, place in enumerate(places):
            if reason := known.difference(size, place, values[row]):
                wrong.append(f"image {place} of {size} in {len(groups)} requests, {rows} rows and {padded}: {reason}")
        arena.free(_block(request.inputs[0]))
        arena.free(_block(request.outputs[0]))
    return wrong


def _block(span: Span) -> tuple[int, int]:
    return span.offset, -(-span.nbytes // 64) * 64


def _beside_padding(known: _Known, chance: random.Random) -> list[str]:
    """One batch whose other rows are whatever they may be."""
    session: Session = chance.choice(known.sessions)
    size = chance.choice(known.sizes)
    places = [chance.randrange(_IMAGES) for _ in range(chance.randint(1, 8))]
    images = known.images[size][places]
    fill = np.full((chance.randint(1, 8), *images.shape[1:]), chance.choice([0, 1, 128, 255]), np.uint8)
    (values, *_) = session.run([np.concatenate([images, fill])])
    return [
        f"image {place} of {size} beside {len(fill)} rows of {fill.max()}: {reason}"
        for place, row in zip(places, values, strict=False)
        if (reason := known.difference(size, place, row))
    ]


class _Served:
    """The same networks behind a server with two engines, each with two sessions."""

    def __init__(self, target: str, knowns: Sequence[_Known]) -> None:
        self._knowns = knowns
        self._client, self._tensors = Client(target), TensorClient(target, 60)
        self._threads = ThreadPoolExecutor(6)

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()
        self._tensors.__exit__()

    def batching(self, chance: random.Random) -> list[str]:
        """Requests at the same time, of one or several images each."""
        known = chance.choice(self._knowns)
        size = chance.choice(known.sizes)
        tensors = [chance.random() < 0.4 for _ in range(6)]
        calls = [
            self._threads.submit(self._infer if tensor else self._ask, known, size, places)
            for tensor, places in zip(tensors, _groups(chance), strict=False)
        ]
        return [f"over a server: {reason}" for call in calls for reason in call.result()]

    def _infer(self, known: _Known, size: tuple[int, int], places: Sequence[int]) -> list[str]:
        name = metadata.PROBABILITIES if known.alone[size, 0].ndim == 1 else metadata.MASK
        found = self._tensors.infer(known.name, metadata.IMAGE, known.images[size][list(places)], [name])[name]
        return self._compare(known, size, places, list(found))

    def _ask(self, known: _Known, size: tuple[int, int], places: Sequence[int]) -> list[str]:
        images = list(known.images[size][list(places)])
        found: list[NDArray[np.generic]] = []
        if known.alone[size, 0].ndim == 1:
            for answer in self._client.classify_many(images, known.name, top_k=networks.CLASSES):
                assert isinstance(answer, Classification), answer
                values = np.zeros(networks.CLASSES, np.float32)
                values[[label.index for label in answer.labels]] = [label.probability for label in answer.labels]
                found.append(values)
        else:
            for mask in self._client.segment_many(images, known.name):
                assert isinstance(mask, Segmentation), mask
                found.append(mask.mask)
        return self._compare(known, size, places, found)

    def _compare(
        self, known: _Known, size: tuple[int, int], places: Sequence[int], found: Sequence[NDArray[np.generic]]
    ) -> list[str]:
        pairs = zip(places, found, strict=True)
        return [
            f"image {place} of {size}: {reason}"
            for place, row in pairs
            if (reason := known.difference(size, place, row))
        ]


def run(trials: int, seed: int) -> Tally:
    """Batchings of all kinds: by the engine's code alone, beside any padding, and over a server."""
    count, chance = Count(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(8 << 20)
        knowns = [_Known(network, Path(folder)) for network in _NETWORKS]
        with Server(Path(folder), _SETTINGS) as server:
            served = _Served(server.grpc, knowns)
            for trial in range(trials):
                if trial % _SERVED == 0:
                    wrong = served.batching(chance)
                elif trial % 4 == 1:
                    wrong = _beside_padding(chance.choice(knowns), chance)
                else:
                    wrong = _batching(chance.choice(knowns), chance, arena)
                if wrong:
                    count.bad(f"seed {seed}, batching {trial}: {wrong[0]}, and {len(wrong) - 1} others")
                else:
                    count.good()
            served.close()
            count.see("relative difference", max(known.worst for known in knowns))
            for device in (0, 1):
                if not server.total("convoy_batches_total", device=str(device)):
                    count.also_bad(f"seed {seed}: device {device} ran nothing")
    return count.tally()


def control(seed: int) -> Tally:
    """A network whose answers depend on the batch, though it says they do not."""
    count, chance = Count(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        known = _Known(_Network("minded", networks.minded(), ((networks.SIDE, networks.SIDE),)), Path(folder))
        arena = Arena(8 << 20)
        for kind in (lambda: _beside_padding(known, chance), lambda: _batching(known, chance, arena)):
            found = [reason for _ in range(20) for reason in kind()]
            if not found:
                return Tally(20)
            count.bad(found[0])
    return count.tally()


PROBE = Probe(
    number="R20",
    what="An image gets the same class or mask in any batch, from any engine; relative difference at most 1e-5.",
    unit="random batchings",
    wanted=100_000,
    chunk=20_000,
    run=run,
    control=control,
)
