"""R10: of a batch of 32 images, one ends the engine, by a crash or by a run that never ends. Only that one fails."""

import tempfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability.neighbours import DISTINCT, Neighbours, best, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import check_nothing_is_left, restarts, settings
from tests.service import networks
from tests.service.calls import method, reason
from tests.service.running import Server
from tests.service.test_vision import encoded

_BATCH = 32
_MOST_RESTARTS = 3
_FATAL = np.full((8, 8), 250, np.uint8)
_SECONDS = 90.0
QUICK_TO_FIND = ("server.heartbeat_seconds=1", "engine.run_limit_seconds=1")


def run(trials: int, seed: int, *, poisons: int = 1) -> Tally:
    """Sends so many batches, each to a model of its own: one that ends engines again and again stops serving."""
    random = np.random.default_rng(seed)
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        networks.save(networks.classifier(), Path(folder), "letters")
        names = [f"{('dies', 'hangs')[trial % 2]}-{trial}" for trial in range(trials)]
        for name in names:
            networks.save(networks.fatal(name.partition("-")[0]), Path(folder), name)
        with Server(Path(folder), [*settings(seed), *QUICK_TO_FIND]) as server:
            with grpc.insecure_channel(server.grpc) as channel, Neighbours(server.grpc) as neighbours:
                for name in names:
                    if found := _try(server, channel, name, random, poisons):
                        count.bad(f"model {name} of seed {seed}: {'; '.join(found)}")
                    else:
                        count.good()
            if neighbours.failed:
                count.also_bad(f"seed {seed}: {len(neighbours.failed)} calls of another model failed")
            check_nothing_is_left(server, count, f"seed {seed}")
    return count.tally()


def _try(server: Server, channel: grpc.Channel, name: str, random: np.random.Generator, poisons: int) -> list[str]:
    """What went wrong."""
    before = restarts(server, "engine")
    bad = {int(place) for place in random.choice(_BATCH, poisons, replace=False)}
    seeds = [int(each) for each in random.integers(0, DISTINCT, _BATCH)]
    classify = method(channel, "Classify")
    # Pixels of several callers share a slot; files do not.
    request = _pixels if random.random() < 0.5 else _file
    calls = [
        classify.future(request(name, _FATAL if place in bad else grey(seeds[place])), timeout=_SECONDS)
        for place in range(_BATCH)
    ]
    found = []
    failed = {place for place, call in enumerate(calls) if call.exception() is not None}
    if len(failed) != 1:
        found.append(f"images {sorted(failed)} failed, want only {min(bad)}")
    for place in failed & bad:
        found += _wrong_error(calls[place])
    for place in set(range(_BATCH)) - failed:
        index = calls[place].result().results[0].classification.labels[0].index
        if place in bad or index != best(grey(seeds[place])):
            found.append(f"image {place} is said to be of class {index}")
    if (died := restarts(server, "engine") - before) > _MOST_RESTARTS:
        found.append(f"{died:g} engines died, want at most {_MOST_RESTARTS}")
    # The same again is refused, and no engine dies of it.
    found += _wrong_error(classify.future(request(name, _FATAL), timeout=_SECONDS))
    if restarts(server, "engine") - before > died:
        found.append("another engine died of the same image")
    return found


def _wrong_error(call: Any) -> list[str]:
    error = call.exception()
    if error is None:
        return ["the image that ends engines has an answer"]
    # A call that was never answered has no reason.
    why = reason(error) if error.code() is grpc.StatusCode.INTERNAL else error.code().name
    return [] if why == "ENGINE_DIED" else [f"the image that ends engines failed with {why}, want ENGINE_DIED"]


def _file(model: str, image: np.ndarray) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=[pb.Image(encoded=encoded(image))])


def _pixels(model: str, image: np.ndarray) -> pb.ClassifyRequest:
    raw = pb.RawImage(pixels=image.tobytes(), height_px=8, width_px=8, channels=1)
    return pb.ClassifyRequest(model=model, images=[pb.Image(raw=raw)])


def control(seed: int) -> Tally:
    """Two such images instead of one."""
    return run(1, seed, poisons=2)


PROBE = Probe(
    "R10",
    "Of a batch of 32, only the one image fails that ends the engine. The same again is refused, and other models go "
    "on.",
    "batches with such an image",
    300,
    10,
    run,
    control,
)
