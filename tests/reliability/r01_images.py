"""R1: changed pictures: most through the decoder, in a process of its own that may die, and some through a server."""

import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from unittest import mock

import grpc

from convoy.service.images import jpeg
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability import leaks
from tests.reliability.fuzz import TARGETS
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.r01_messages import channel
from tests.reliability.samples import pictures
from tests.reliability.siege import SECONDS, Siege, with_a_death

_SERVED = 10  # of so many pictures one goes through the server
_TOGETHER = 25  # pictures of a request
_AT_ONCE = 4  # requests
_CPU_SECONDS = 5.0  # that a small picture may take
_PIECE = 25_000  # pictures of one job of the other process


def run(trials: int, seed: int) -> Tally:
    """One trial is one picture."""
    count = Count()
    served = max(1, trials // _SERVED)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        jobs = [
            process.submit(_decode, f"pictures {seed} {at}", min(_PIECE, trials - served - at))
            for at in range(0, trials - served, _PIECE)
        ]
        _serve(count, served, seed)
        for job in jobs:
            try:
                decoded = job.result()
            except BrokenProcessPool:
                count.bad(f"seed {seed}: a picture has ended the process that decodes")
                break
            count.add(decoded)
    return count.tally()


def changed(rng: random.Random) -> bytes:
    """A picture that is damaged, in its structure or anywhere."""
    data = rng.choice(pictures())
    for _ in range(rng.choice((1, 1, 2))):
        data = TARGETS["image"].mutate(rng, data)
    return data


def _decode(seed: str, trials: int) -> Tally:
    rng, count = random.Random(seed), Count()
    for number in range(trials):
        data, began = changed(rng), time.thread_time()
        try:
            TARGETS["image"].try_(data)
        except Exception as error:
            count.bad(f"picture {number} of {seed!r}, {data[:100].hex()}: {error!r:.200}")
            continue
        took = time.thread_time() - began
        count.see("decoding, CPU s", took)
        count.bad(f"picture {number} of {seed!r} took {took:.1f} s") if took > _CPU_SECONDS else count.good()
    return count.tally()


def _serve(count: Count, trials: int, seed: int) -> None:
    rng = random.Random(f"served pictures {seed}")
    with Siege(count, seed) as siege, channel(siege) as connection:
        calls = [
            connection.unary_unary(
                f"/convoy.v1.Vision/{name}",
                request_serializer=kind.SerializeToString,
                response_deserializer=answer.FromString,
            )
            for name, kind, answer in (
                ("Classify", pb.ClassifyRequest, pb.ClassifyResponse),
                ("Segment", pb.SegmentRequest, pb.SegmentResponse),
            )
        ]
        while trials > 0:
            began, waiting = time.monotonic(), []
            for _ in range(_AT_ONCE):
                images = [changed(rng) for _ in range(min(trials, rng.choice((1, _TOGETHER, _TOGETHER))))]
                trials -= len(images)
                if images:
                    which = rng.randrange(2)
                    request = (pb.ClassifyRequest, pb.SegmentRequest)[which](
                        model=("letters", "colours")[which], images=[pb.Image(encoded=data) for data in images]
                    )
                    waiting.append((images, calls[which].future(request, timeout=SECONDS)))
            for images, future in waiting:
                _count_answer(siege, images, future, began)


def _count_answer(siege: Siege, images: list[bytes], future: "grpc.Future", began: float) -> None:
    count = siege.count
    try:
        results = future.result().results
    except grpc.RpcError as error:
        if wrong := siege.wrong(error, b"", began):
            count.bad(f"a request with {[data[:60].hex() for data in images[:3]]}: {wrong}")
        else:
            count.good(len(images))
        return
    if len(results) != len(images):
        count.bad(f"{len(images)} pictures have {len(results)} results")
    for data, result in zip(images, results, strict=False):
        error = result.error
        wrong = leaks.found(error.message) or (error.code not in (0, 3, 4, 8) and f"code {error.code}: {error.message}")
        if wrong:
            count.bad(f"picture {data[:100].hex()}: {wrong}")
        else:
            count.good()


def control(seed: int) -> Tally:
    """A decoder that raises what nobody expects, and an engine that ends."""
    with mock.patch.object(jpeg, "read_structure", _surprising):
        blind = _decode(f"control {seed}", 50).failed == 0
    return Tally(1, 0) if blind else with_a_death("engine", seed)


def _surprising(data: bytes, max_pixels: int) -> jpeg.Structure:
    raise KeyError("nobody has thought of it")


PROBE = Probe(
    "R1",
    "No picture ends or hangs the server, or hurts a good caller",
    "mutated images",
    1_000_000,
    100_000,
    run,
    control,
)
