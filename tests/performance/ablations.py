"""What each optimisation brings: the server with it beside the same server without it, in turns."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from convoy.service.bench.arrivals import gaps
from convoy.service.bench.simulation import oracle
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance import load, models
from tests.performance.figure import (
    CLASSIFY,
    SEGMENT,
    cpu_per_request,
    request,
    seconds_of,
    segment_request,
    serving,
    sleeping,
)
from tests.performance.plain.swaps import environment
from tests.performance.report import markdown
from tests.performance.rounds import in_rounds, variants
from tests.performance.trials import Ratio, in_turns, ratio
from tests.service.images.test_decode import RGB, png_file
from tests.service.running import Server

WORTH = 0.05  # what does not gain so much goes
BEGIN = "<!-- Written by `make perf`. -->"  # in the page, around the table
END = "<!-- Written by hand again. -->"

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_SLEEPLESS = "engine.sleep_ms=[0, 0]"
_SMALL, _LARGE, _FLOATS = 32, 184, 224  # sides of the images and of the tensor
_MANY = 32  # images a call
_REQUESTS = 60  # of a turn


Verdict = Literal["kept", "open", "goes", ""]  # open: may be noise; none where nothing is judged
VERDICTS: Sequence[Verdict] = ("kept", "open", "goes", "")


class Comparison(NamedTuple):
    """One line."""

    optimisation: str
    figure: str
    measured: str
    verdict: Verdict


class Work(NamedTuple):
    """A request that is sent again and again; `images` are those in it."""

    figure: str
    method: str
    body: bytes
    images: int = 1


def ablations(folder: Path, pairs: int) -> Iterator[Comparison]:
    """Yields all comparisons, the control first."""
    root = repository(folder / "tiny")
    small = Work("CPU time of the server for a Classify of one image of 1 kB", CLASSIFY, _image(_SMALL, 1))
    many = Work(
        f"CPU time of the server for an image of 1 kB, {_MANY} in a Classify", CLASSIFY, _image(_SMALL, 1, _MANY), _MANY
    )
    large = Work("CPU time of the server for a Classify of 100 kB of raw pixels", CLASSIFY, _image(_LARGE, 3))
    tensor = Work("CPU time of the server for a ModelInfer of 602 kB of float32", _INFER, tensor_request())
    cpu = partial(cpu_times, root, rounds=pairs)
    yield from cpu("none: the same server twice", "", [small])
    yield from cpu("libnghttp2 speaks gRPC, instead of grpcio", "grpcio", [small, large])
    yield from cpu("requests that arrive together share a slot and a request", "alone", [small], most=_MANY)
    yield from cpu("payloads are lifted out of a message before protobuf parses it", "parsing", [small, large, tensor])
    yield from cpu("large payloads are written into shared memory as they arrive", "landing", [large, tensor])
    yield from cpu("responses of Classify are encoded by hand, labels in advance", "responses", [small, many])
    yield from refusals(root, pairs)
    yield from cpu("values of a metric are written without asking for the process id", "process id", [small])
    yield from cpu("labels are looked up once, times of many images added at once", "counting", [small, many])
    yield from sixteen_bits(root, pairs)
    yield learned_buckets(root, pairs)
    yield start(folder / "start", pairs)
    yield from instances(folder / "instances", pairs)


def repository(root: Path) -> Path:
    """Makes networks of microseconds."""
    models.nothing(root, "small", _SMALL, "L")
    models.nothing(root, "large", _LARGE, "RGB")
    models.floats(root, _FLOATS)
    models.levels(root)
    return root


def tensor_request() -> bytes:
    """Encodes a ModelInfer of one image as float32."""
    values = np.random.default_rng(0).random((1, 3, _FLOATS, _FLOATS), np.float32)
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=values.shape)
    return inference_pb2.ModelInferRequest(
        model_name="floats", inputs=[tensor], raw_input_contents=[values.tobytes()]
    ).SerializeToString()


def sixteen_bit_request() -> bytes:
    """Encodes a Segment of a PNG file with every 16-bit level of red, 256 by 256."""
    samples = np.zeros((256, 256, 3), np.uint16)
    samples[..., 0] = np.arange(2**16).reshape(256, 256)
    return pb.SegmentRequest(images=[pb.Image(encoded=png_file(samples, 16, RGB))]).SerializeToString()


def cpu_times(
    root: Path, optimisation: str, variant: str, works: Sequence[Work], rounds: int, most: int = 0
) -> Iterator[Comparison]:
    """CPU time of an image where each request is a batch of its own, so that all batches are alike.

    Or up to `most` images share a batch.
    """
    for work in works:
        servers = variants(root, _SLEEPLESS, f"batching.max_batch_size={most or work.images}")
        found = in_rounds(servers, variant, partial(_cpu_time, work), rounds)
        yield Comparison(optimisation, work.figure, _shown(*found, 1e6, "us"), less(*found) if variant else "")


def refusals(root: Path, pairs: int) -> Iterator[Comparison]:
    """What an overloaded server spends on a refusal, and how much it answers in time."""
    name, body = "the front end refuses what the engine has just refused", _image(_SMALL, 1)

    def refused(server: Server) -> float:
        def trial() -> load.Answers:
            answers = load.closed(server.grpc, CLASSIFY, body, 16, _REQUESTS, deadline=0.05)
            assert not answers.latencies
            return answers

        return cpu_per_request(server.process.pid, trial)

    servers = variants(root, "engine.sleep_ms=[60, 0]", "batching.max_batch_size=1")
    found = in_rounds(servers, "outlook", refused, pairs)
    yield Comparison(name, "CPU time of the server for a refusal", _shown(*found, 1e6, "us"), less(*found))
    scale, factor, seconds = 8.0, 5.0, 5.0
    deadline = 0.1 * scale
    best = oracle(lambda size: scale * seconds_of(size), 64, deadline)
    times = np.cumsum(gaps(np.random.default_rng(4), "poisson", factor * best, 1.0, int(seconds * factor * best)))

    def goodput(server: Server) -> float:
        answers = load.at_times(server.grpc, CLASSIFY, body, times.tolist(), deadline)
        return sum(latency <= deadline for latency in answers.latencies) / float(times[-1])

    settings = ("batching.max_batch_size=64", "limits.max_requests=100000", "batching.max_queue=100000")
    servers = variants(root, sleeping(scale), *settings)
    with servers("") as real, servers("outlook") as plain:
        found = in_turns(partial(goodput, real), partial(goodput, plain), pairs)
    figure = f"images answered in time a second at {factor:g} times the load that can be served, sleep engine"
    yield Comparison(name, figure, _shown(*found, 1, ""), more(*found))


def sixteen_bits(root: Path, pairs: int) -> Iterator[Comparison]:
    """What is wrong with the high bytes alone, and what exact pixels cost."""
    name, body = "16-bit PNG files are scaled to 8 bits exactly", sixteen_bit_request()
    exact = np.rint(np.arange(2**16) / 257).astype(np.int64)
    servers = variants(root)
    with servers("") as real, servers("16 bits") as plain:
        off = [np.abs(levels_answered(server, body) - exact) for server in (real, plain)]
    measured = [f"{float((each > 0).mean()):.1%}, by at most {each.max()}" for each in off]
    figure = "share of the 16-bit levels that become a wrong 8-bit level"
    gained = float((off[1] > 0).mean() - (off[0] > 0).mean())
    yield Comparison(name, figure, f"{measured[0]} with; {measured[1]} without", _judged(gained >= WORTH, True))
    work = Work("CPU time of the server for a Segment of such a file, 256x256 RGB", SEGMENT, body)
    found = in_rounds(servers, "16 bits", partial(_cpu_time, work), pairs)
    yield Comparison(name, work.figure, _shown(*found, 1e6, "us"), "")


def levels_answered(server: Server, body: bytes) -> NDArray[np.int64]:
    """Returns the levels of red that the network was given."""
    with grpc.insecure_channel(server.grpc) as channel:
        answer = channel.unary_unary(SEGMENT, response_deserializer=pb.SegmentResponse.FromString)(body)
    return np.frombuffer(answer.results[0].segmentation.mask, np.uint8).astype(np.int64)


def learned_buckets(root: Path, pairs: int) -> Comparison:
    """Images of mixed sizes, with buckets learned from them or with none."""
    sides = np.random.default_rng(3).integers(64, 129, (24, 2))
    bodies = [segment_request((int(height), int(width))) for height, width in sides]
    images, callers = 480, 32

    def rate(server: Server) -> float:
        answers = load.each(server.grpc, SEGMENT, (bodies[number % len(bodies)] for number in range(images)), callers)
        assert not answers.errors, answers.errors[:3]
        return len(answers.latencies) / answers.seconds

    with (
        serving(root, sleeping(), "batching.buckets=auto", environment=environment()) as learning,
        serving(root, sleeping(), environment=environment()) as none,
    ):
        at_first = _padding(learning, partial(rate, learning))
        while _padding(learning, partial(rate, learning)) < at_first + 0.02:  # until they are chosen and measured
            assert learning.total("convoy_images_total") < 40 * images, "no buckets were learned"
        found = in_turns(partial(rate, learning), partial(rate, none), pairs)
        share = _padding(learning, partial(rate, learning))
    figure = f"images a second of {len(bodies)} sizes, {callers} callers, sleep engine, which pads for free"
    measured = f"{_shown(*found, 1, '')}; {share:.0%} of the pixels are padding"
    return Comparison("buckets are learned from the sizes of the images", figure, measured, more(*found))


def start(root: Path, pairs: int) -> Comparison:
    """From nothing to ready."""
    root.mkdir()
    models.real(root / "repository", "resnet18")
    with serving(root / "repository", environment=environment()):
        pass  # so that the profile is there, as at every start but the first

    def seconds(variant: str) -> float:
        begin = time.perf_counter()
        with serving(root / "repository", environment=environment(variant)):
            return time.perf_counter() - begin

    found = in_turns(partial(seconds, ""), partial(seconds, "start"), pairs)
    name, figure = "processes start before the command line is read", "start to ready, resnet18, profile there"
    return Comparison(name, figure, _shown(*found, 1000, "ms"), less(*found))


def instances(root: Path, pairs: int) -> Iterator[Comparison]:
    """Images a second of 16 callers, with the number of sessions that the server chooses and with fixed ones."""
    root.mkdir()
    models.real(root / "repository", "mobilenet")
    body, images, threads = request(224, 3), 192, 2

    def rate(server: Server) -> float:
        answers = load.closed(server.grpc, CLASSIFY, body, 16, images)
        assert not answers.errors, answers.errors[:3]
        return images / answers.seconds

    for fixed in (1, threads):
        with (
            serving(root / "repository", f"engine.threads={threads}", "engine.instances=auto") as chosen,
            serving(root / "repository", f"engine.threads={threads}", f"engine.instances={fixed}") as other,
        ):
            found = in_turns(partial(rate, chosen), partial(rate, other), pairs)
        sessions = "1 session of 2 threads" if fixed == 1 else f"{fixed} sessions of 1 thread"
        figure = f"images a second of 16 callers, MobileNet v1, 224x224, over {sessions}"
        yield Comparison('`instances = "auto"`', figure, _shown(*found, 1, ""), more(*found))


def less(with_it: Sequence[float], without: Sequence[float]) -> Verdict:
    """Judges a cost."""
    found = ratio(with_it, without)
    return _judged(found.median <= 1 - WORTH, found.high < 1)


def more(with_it: Sequence[float], without: Sequence[float]) -> Verdict:
    """Judges a rate."""
    found = ratio(with_it, without)
    return _judged(found.median >= 1 + WORTH, found.low > 1)


def verdict(lines: Sequence[Comparison]) -> Verdict:
    """Returns what follows for an optimisation from its lines: the best of them decides."""
    return min((line.verdict for line in lines), key=VERDICTS.index)


def table(lines: Sequence[Comparison]) -> str:
    """Returns the lines as a table, each optimisation's verdict beside its first line."""
    cells = []
    for optimisation, group in groupby(lines, attrgetter("optimisation")):
        found = list(group)
        for number, line in enumerate(found):
            first = number == 0
            cells.append([
                optimisation if first else "", line.figure, line.measured, verdict(found) if first else ""
            ])  # fmt: skip
    return markdown(["optimisation", "figure", "with / without", ""], cells)


def replaced(page: str, section: str) -> str:
    """Returns the page with this section between its marks. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"page has no {BEGIN!r} ... {END!r}, want both: the table goes between them")
    return f"{before}{begin}\n{section}{end}{after}"


def _judged(enough: bool, sure: bool) -> Verdict:
    return "goes" if not enough else "kept" if sure else "open"


def _cpu_time(work: Work, server: Server) -> float:
    callers, requests = (16, _REQUESTS) if work.images == 1 else (4, _REQUESTS // 3)

    def trial() -> load.Answers:
        answers = load.closed(server.grpc, work.method, work.body, callers, requests)
        assert not answers.errors, answers.errors[:3]
        return answers

    return cpu_per_request(server.process.pid, trial) / work.images


def _padding(server: Server, trial: Callable[[], object]) -> float:
    """Returns the share of padding among the pixels that run in a trial."""

    def pixels() -> tuple[float, float]:
        return server.total("convoy_padding_pixels_total"), server.total("convoy_input_pixels_total")

    before = pixels()
    trial()
    padding, run = (now - then for now, then in zip(pixels(), before, strict=True))
    return padding / run


def _image(side: int, channels: int, images: int = 1) -> bytes:
    return request(side, channels, images, "small" if side == _SMALL else "large")


def _shown(with_it: Sequence[float], without: Sequence[float], factor: float, unit: str) -> str:
    found: Ratio = ratio(with_it, without)
    medians = [f"{factor * statistics.median(each):.0f}{unit and ' '}{unit}" for each in (with_it, without)]
    return f"{found}; {medians[0]} with, {medians[1]} without"
