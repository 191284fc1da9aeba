"""R7: a request that has expired reaches neither the decoder nor the network."""

import asyncio
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np

from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability import faults
from tests.reliability.injection import Board, environment
from tests.reliability.neighbours import DISTINCT, best, grey
from tests.reliability.probe import Count, Probe, Tally
from tests.service import networks
from tests.service.calls import infer_request, method, stream
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import DATA, END_STREAM, Raw, frame, message
from tests.service.running import Server
from tests.service.test_vision import encoded

CLASSIFY = "/convoy.v1.Vision/Classify"
_AT_ONCE = 500  # requests of one kind in a round
_TRANSPORTS = ("nghttp2", "grpcio")


def _request(seed: int, model: str = "letters") -> pb.ClassifyRequest:
    """Every other image has to be decoded, some of the others to be fitted."""
    image = grey(seed % DISTINCT)
    if seed % 2:
        return pb.ClassifyRequest(model=model, images=[pb.Image(encoded=encoded(image))])
    wide = np.repeat(image, 1 + seed % 3, axis=1)
    raw = pb.RawImage(pixels=wide.tobytes(), height_px=8, width_px=wide.shape[1], channels=1)
    return pb.ClassifyRequest(model=model, images=[pb.Image(raw=raw)])


def _streamed(target: str, seeds: range) -> int:
    """Messages of a stream, each with a microsecond of its own. Returns how many did not end with its deadline."""
    messages = (pb.ClassifyStreamRequest(id=seed, request=_request(seed), deadline_seconds=1e-6) for seed in seeds)
    with grpc.insecure_channel(target) as channel:
        codes = [answer.error.code for answer in stream(channel, "ClassifyStream")(messages, timeout=120)]
    return len(seeds) - codes.count(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])


def _tensors(target: str, seeds: range) -> int:
    """The same with tensors."""

    def messages() -> Iterator[inference_pb2.ModelInferRequest]:
        for seed in seeds:
            request = infer_request("letters", grey(seed % DISTINCT)[None, :, :, None], "image", "UINT8")
            request.parameters["timeout"].int64_param = 1
            yield request

    with grpc.insecure_channel(target) as channel:
        answers = list(stream(channel, "ModelStreamInfer")(messages(), timeout=120))
    codes = [answer.infer_response.parameters["convoy_status"].string_param for answer in answers]
    return len(seeds) - codes.count("DEADLINE_EXCEEDED")


def _calls(target: str, seeds: range) -> int:
    """Calls that may last a nanosecond, by a client that waits for the server to say so."""
    host, _, port = target.rpartition(":")
    wrong, places = 0, 50
    for begin in range(0, len(seeds), places):
        with Raw((host, int(port))) as caller:
            part = seeds[begin : begin + places]
            for place, seed in enumerate(part):
                headers = caller.headers(2 * place + 1, wire.request(CLASSIFY, ("grpc-timeout", "1n")))
                body = message(_request(seed).SerializeToString())
                caller.send(headers + frame(DATA, END_STREAM, 2 * place + 1, body))
            wrong += len(part) - _expired(caller, len(part))
    return wrong


def _expired(caller: Raw, calls: int) -> int:
    """Counts the calls of a connection that end with their deadline."""
    found, ended = 0, set[int]()
    while len(ended) < calls and (got := caller.read()) is not None:
        if got.kind == wire.HEADERS:
            found += caller.decode(got).get("grpc-status") == "4"
        # The transport may reset a call instead, which says as much to a client whose own time has run out.
        found += got.kind == wire.RST_STREAM and got.stream not in ended and got.code == 8
        if got.kind == wire.RST_STREAM or (got.kind in (wire.HEADERS, DATA) and got.flags & END_STREAM):
            ended.add(got.stream)
    return found


def _in_company(target: str, seeds: range) -> int:
    """Calls of a slow network, most of whose deadlines pass while they wait. Returns the number of wrong answers."""

    async def one(channel: grpc.aio.Channel, seed: int) -> int:
        call = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        seconds = random.Random(seed).uniform(0.001, 0.3)
        try:
            answer = await call(_request(seed, "slow").SerializeToString(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            return error.code() not in late
        # An image that was stretched before has no known answer here.
        known = seed % 2 or not seed % 3
        return bool(known) and answer.results[0].classification.labels[0].index != best(grey(seed % DISTINCT))

    async def play() -> int:
        async with grpc.aio.insecure_channel(target) as channel:
            return sum(await asyncio.gather(*(one(channel, seed) for seed in seeds)))

    return asyncio.run(play())


_KINDS: tuple[tuple[str, Callable[[str, range], int]], ...] = (
    ("messages of a stream", _streamed),
    ("tensors", _tensors),
    ("calls", _calls),
    ("calls of a slow network", _in_company),
)


def _storm(trials: int, seed: int, fault: Callable[[str, Board], None]) -> Tally:
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        root, board = Path(folder) / "models", Board(Path(folder) / "board")
        networks.save(networks.classifier(), root, "letters")
        networks.save(networks.slow(2), root, "slow")
        transport = _TRANSPORTS[seed % 2]
        # gRPC's core rounds a nanosecond up to a millisecond, in which some calls are answered.
        kinds = [each for each in _KINDS if each[1] is not _calls or transport == "nghttp2"]
        settings = ["server.lame_duck_seconds=0", f"server.transport={transport}"]
        with Server(root, settings, environment=environment(fault, board)) as server:
            first = seed * trials
            for kind, ask in itertools.cycle(kinds):
                late = int(board.cells[faults.DECODED_LATE] + board.cells[faults.RUN_LATE])
                some = min(_AT_ONCE, trials - count.trials)
                if not some:
                    break
                wrong = ask(server.grpc, range(first + count.trials, first + count.trials + some))
                count.good(some)
                where = f"seed {seed}, requests from {first + count.trials - some} on ({kind})"
                if wrong:
                    count.also_bad(f"{where}: {wrong} did not end as they should")
                late = int(board.cells[faults.DECODED_LATE] + board.cells[faults.RUN_LATE]) - late
                for _ in range(late):
                    count.also_bad(f"{where}: one was decoded or run although it had expired")
            with grpc.insecure_channel(server.grpc) as channel:
                assert method(channel, "Classify")(_request(1)).results[0].classification.labels
            for gauge in ("convoy_slots", "convoy_slot_bytes", "convoy_requests_in_flight", "convoy_queue_depth"):
                if server.wait_for_total(gauge, 0, 30):
                    count.also_bad(f"seed {seed}: {gauge} is not 0 afterwards")
        if not board.cells[faults.DECODED] or not board.cells[faults.RUN]:
            count.also_bad(f"seed {seed}: nothing was counted")
    return count.tally()


def run(trials: int, seed: int) -> Tally:
    """Storms of requests that have expired on arrival, or expire in the queue."""
    return _storm(trials, seed, faults.deadlines)


def control(seed: int) -> Tally:
    """The same where nobody looks at deadlines."""
    return _storm(4 * 100, seed, faults.no_deadlines)


PROBE = Probe(
    number="R7",
    what="A request that has expired reaches neither the decoder nor the network.",
    unit="requests with deadlines that pass",
    wanted=100_000,
    chunk=20_000,
    run=run,
    control=control,
)
