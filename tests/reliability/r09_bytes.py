"""R9: the bytes of requests in flight stay below their limit, whatever sizes are sent or declared."""

import math
import random
import select
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import numpy as np

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability import faults
from tests.reliability.injection import Board, environment
from tests.reliability.memory import MIB, highest_rss, reset_highest
from tests.reliability.neighbours import grey
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.servers import until
from tests.service import networks
from tests.service.calls import infer_request, method
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import DATA, END_STREAM, RST_STREAM, Raw, frame, message
from tests.service.running import Server

_VISION = "/convoy.v1.Vision/"
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_LARGEST = MIB // 8  # bytes of a message
_LIMIT = MIB // 4  # bytes in flight
_SLOTS = 4 * MIB
_READ = MIB // 4  # bytes that the transport reads at once: by so many it may exceed its limit while it refuses them
_FRAME = 1 << 14  # bytes
_CALLERS = 8
_CALLS = 25  # that overlap on one connection
_BUSY = 120.0  # seconds for what was sent to be read, on a machine that others use as well
_SLACK = 32 * MIB  # of memory: the interpreter, its allocator, and pixels that are being decoded


def _body(chance: random.Random) -> tuple[str, bytes]:
    """Returns the path and the message of a request: of any size, of any kind."""
    even = chance.random() < 0.4
    size = chance.randrange(1, _LARGEST) if even else int(math.exp(chance.uniform(0, math.log(_LARGEST))))
    kind = chance.randrange(5)
    if kind == 0:
        return f"{_VISION}Classify", chance.randbytes(min(size, 4096))  # no message at all
    side = max(1, math.isqrt(size // 3))
    if kind == 1:
        raw = pb.RawImage(pixels=bytes(3 * side * side), height_px=side, width_px=side, channels=3)
        return f"{_VISION}Segment", pb.SegmentRequest(model="colours", images=[pb.Image(raw=raw)]).SerializeToString()
    if kind == 2:
        rows = max(1, min(size // 64, 1000))
        request = infer_request("letters", np.zeros((rows, 8, 8, 1), np.uint8), "image", "UINT8")
        return _INFER, request.SerializeToString()
    # Sizes that do not fit their pixels, or no model of this name: refused after they have arrived.
    raw = pb.RawImage(pixels=bytes(size), height_px=chance.choice([1, 8, 2**31]), width_px=8, channels=1)
    name = chance.choice(["letters", "made-up", "letters"])
    return f"{_VISION}Classify", pb.ClassifyRequest(model=name, images=[pb.Image(raw=raw)]).SerializeToString()


def _send(caller: Raw, stream: int, chance: random.Random) -> None:
    """Sends one request, or a part of one."""
    path, body = _body(chance)
    sent, manner = message(body), chance.randrange(6)
    if manner == 0:  # declares more than it sends
        declared = chance.choice([len(body) + 1, _LARGEST, 2**31, 2**32 - 1])
        sent = (bytes(1) + struct.pack(">I", declared) + body)[: chance.randrange(1, len(body) + 6)]
    elif manner == 1:
        sent = sent[: chance.randrange(len(sent))]
    parts = [sent[begin : begin + _FRAME] for begin in range(0, len(sent), _FRAME)]
    frames = [caller.headers(stream, wire.request(path, ("grpc-timeout", "20S")))]
    frames += [frame(DATA, 0, stream, part) for part in parts]
    if manner == 2:
        frames.append(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
    elif manner > 2 or chance.random() < 0.5:  # the others wait for the rest until the connection ends
        frames.append(frame(DATA, END_STREAM, stream))
    caller.send(b"".join(frames))


def _attack(address: tuple[str, int], calls: int, seed: int) -> None:
    """One connection whose calls overlap. It leaves in the middle of things, sometimes once it has been answered."""
    chance = random.Random(seed)
    with suppress(OSError), Raw(address) as caller:
        for call in range(calls):
            _send(caller, 2 * call + 1, chance)
            while select.select([caller.socket], [], [], 0)[0]:
                if not caller.socket.recv(1 << 20):
                    return
        if chance.random() < 0.2:
            caller.socket.settimeout(0.1)  # until nothing comes for so long
            while caller.socket.recv(1 << 20):
                pass


def _flood(trials: int, seed: int, fault: Callable[[str, Board], None], overlap: int) -> Tally:
    count = Count()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_CALLERS) as threads:
        root, board = Path(folder) / "models", Board(Path(folder) / "board")
        networks.save(networks.classifier(), root, "letters")
        networks.save(networks.segmenter(), root, "colours")
        settings = [
            "server.lame_duck_seconds=0",
            "server.frontends=1",
            f"limits.inflight_bytes={_LIMIT}",
            f"limits.max_message_bytes={_LARGEST}",
            f"limits.slot_bytes={_SLOTS}",
            "limits.stall_seconds=1",
            "engine.sleep_ms=[150, 0]",  # so that requests meet
        ]
        with Server(root, settings, environment=environment(fault, board)) as server:
            host, _, port = server.grpc.rpartition(":")
            # Once before, so that what is imported and allocated with the first calls does not count.
            _attack((host, int(port)), _CALLS, seed)
            pid = server.children()["frontend"]
            reset_highest(pid)
            before = highest_rss(pid)
            begins = range(0, trials, overlap)
            for done in [
                threads.submit(_attack, (host, int(port)), min(overlap, trials - begin), (seed << 24) + begin)
                for begin in begins
            ]:
                done.result()
            count.good(trials)
            for what, cell, most in (
                ("admitted", faults.GATE, _LIMIT),
                ("on their way", faults.RECEIVING, 2 * _LIMIT + _READ),
                ("on their way to slots", faults.LANDED, _SLOTS // 4),
            ):
                found = int(board.cells[cell])
                count.see(f"{what} / limit", found / most)
                if found > most:
                    count.also_bad(f"seed {seed}: {found} bytes were {what}, want at most {most}")
            if not board.cells[faults.ADMITTED]:
                count.also_bad(f"seed {seed}: nothing was admitted")
            # Each admitted byte may be there as a message, parsed, and in a slot.
            most = 3 * _LIMIT + 2 * _LIMIT + _SLOTS + _SLACK
            grown = highest_rss(pid) - before
            count.see("memory of the front end / limit", grown / most)
            if grown > most:
                count.also_bad(f"seed {seed}: the front end grew by {grown} bytes, want at most {most}")
            if server.children()["frontend"] != pid:
                count.also_bad(f"seed {seed}: the front end has died")
            # The callers have not waited for answers. Whoever connects after them is answered after they were read.
            if not until(partial(_is_answered, server.grpc), _BUSY):
                count.also_bad(f"seed {seed}: a good caller is not answered afterwards")
            for gauge in ("convoy_in_flight_bytes", "convoy_slot_bytes", "convoy_slots", "convoy_requests_in_flight"):
                if left := server.wait_for_total(gauge, 0, 30):
                    count.also_bad(f"seed {seed}: {gauge} is {left:g} afterwards")
            if not _is_answered(server.grpc):
                count.also_bad(f"seed {seed}: a good caller is not answered in the end")
    return count.tally()


def _is_answered(target: str) -> bool:
    image = pb.Image(raw=pb.RawImage(pixels=grey(1).tobytes(), height_px=8, width_px=8, channels=1))
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            method(channel, "Classify")(pb.ClassifyRequest(model="letters", images=[image]), timeout=60)
        except grpc.RpcError:
            return False  # refused, as long as there is no room
    return True


def run(trials: int, seed: int) -> Tally:
    """Floods of requests of all sizes, whole, in part, and with sizes that are not theirs."""
    return _flood(trials, seed, faults.in_flight, _CALLS)


def control(seed: int) -> Tally:
    """The same where everybody is admitted, and more calls overlap."""
    return _flood(1600, seed, faults.no_gate, 8 * _CALLS)


PROBE = Probe(
    number="R9",
    what="Bytes of requests in flight, on their way, and in the front end's memory stay below their limits.",
    unit="requests of adversarial sizes",
    wanted=1_000_000,
    chunk=40_000,
    run=run,
    control=control,
)
