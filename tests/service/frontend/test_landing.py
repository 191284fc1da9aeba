"""Large payloads arrive where the engine reads them, and their memory is freed however a call ends."""

import asyncio
import gzip
import itertools
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hpack
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convoy.service.config import LimitsConfig
from convoy.service.errors import RunFailed
from convoy.service.frontend import oip, prepare
from convoy.service.frontend.admission import Gate
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.coalescing import Coalescer
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.engine_client import EngineClient
from convoy.service.frontend.landing import Landing, Landings
from convoy.service.frontend.methods import service_of
from convoy.service.frontend.oip import InferenceService
from convoy.service.frontend.threads import Threads
from convoy.service.frontend.transport.choice import choose
from convoy.service.frontend.transport.interface import LARGE, Limits
from convoy.service.frontend.transport.messages import Assembler
from convoy.service.frontend.vision import Vision
from convoy.service.frontend.wire import Parser
from convoy.service.ipc.channel import Answer, Failure, Request, Times
from convoy.service.ipc.pulse import Pulse, page
from convoy.service.ipc.slots import ALIGNMENT, Arena
from convoy.service.metadata import CONFIDENCE, MASK, PROBABILITIES, Document, InputSpec
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import TensorSpec, Version
from tests.service.calls import INFERENCE, VISION, infer_request
from tests.service.frontend.test_engine_client import Engine
from tests.service.frontend.transport import raw
from tests.service.running import skip_without

MIB = 1 << 20
SECONDS = 20.0  # for anything that should happen
SIDE = 184  # 101,568 bytes of RGB
CLASSIFY = Parser(pb.ClassifyRequest.DESCRIPTOR, "images.raw.pixels")
INFER = Parser(inference_pb2.ModelInferRequest.DESCRIPTOR, "raw_input_contents")


# One message, without a server.


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(32 * MIB)
    yield arena
    assert arena.blocks == 0
    os.close(arena.descriptor)


def image(seed: int, height: int = SIDE, width: int = SIDE, nbytes: int | None = None) -> pb.Image:
    pixels = np.random.default_rng(seed).bytes(height * width * 3 if nbytes is None else nbytes)
    return pb.Image(raw=pb.RawImage(pixels=pixels, height_px=height, width_px=width, channels=3))


def classify(*images: pb.Image, model: str = "letters") -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=images, top_k=2)


def pieces(data: bytes, ends: Sequence[int]) -> list[bytes]:
    places = sorted({0, *[end % (len(data) + 1) for end in ends], len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def assembler_of(landings: Landings, parser: Parser = CLASSIFY, encoding: bytes = b"identity") -> Assembler:
    return Assembler(64 * MIB, encoding, landings.land(parser))


def assembled(assembler: Assembler, data: bytes, ends: Sequence[int] = ()) -> Any:
    """The message of a call whose bytes are cut at these places."""
    (message,) = [each for piece in pieces(data, ends) for each in assembler.feed(piece)]
    assert len(message) == len(data) - 5
    return message


def test_payloads_of_a_message_lie_side_by_side_in_shared_memory(arena: Arena) -> None:
    landings = Landings(arena)
    request = classify(*[image(seed) for seed in range(8)])
    assembler = assembler_of(landings)
    message = assembled(assembler, raw.message(request.SerializeToString()), range(0, 900_000, 16_384))
    parsed, payloads = CLASSIFY.parse(message)
    assert [bytes(payload) for payload in payloads.values()] == [each.raw.pixels for each in request.images]
    offset = arena.mapping.offset_of(list(payloads.values()))
    assert offset is not None
    assert offset % ALIGNMENT == 0
    assert [each.raw.height_px for each in parsed.images] == [SIDE] * 8
    assert all(payload.readonly for payload in payloads.values())
    assembler.release()
    assembler.release()


@given(
    st.lists(st.one_of(st.integers(0, 10), st.integers(LARGE - 2, LARGE + 300)), max_size=3),
    st.lists(st.integers(0, 300_000), max_size=12),
    st.randoms(use_true_random=False),
)
def test_landed_message_is_parsed_as_the_whole_one(sizes: list[int], ends: list[int], random: Any) -> None:
    parts = [pb.ClassifyRequest(images=[image(size, nbytes=size)]).SerializeToString() for size in sizes]
    parts += [pb.ClassifyRequest(model="m").SerializeToString(), pb.ClassifyRequest(top_k=3).SerializeToString()]
    random.shuffle(parts)
    data = b"".join(parts)
    arena = Arena(MIB)
    assembler = assembler_of(Landings(arena))
    message = assembled(assembler, raw.message(data), ends)
    whole, expected = CLASSIFY.parse(data)
    parsed, payloads = CLASSIFY.parse(message)
    assert parsed == whole
    assert {number: bytes(each) for number, each in payloads.items()} == {
        number: bytes(each) for number, each in expected.items()
    }
    assembler.release()
    assert arena.blocks == 0
    os.close(arena.descriptor)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (raw.message(classify(image(1, 100, 100)).SerializeToString()), b"identity"),  # small
        (raw.message(classify(pb.Image(encoded=bytes(300_000))).SerializeToString()), b"identity"),  # to be decoded
        (raw.message(gzip.compress(classify(image(1)).SerializeToString()), 1), b"gzip"),
        (raw.message(b"\xff" * 100_000), b"identity"),
    ],
)
def test_what_cannot_land_is_put_together_as_ever(arena: Arena, data: bytes, encoding: bytes) -> None:
    for ends in ((), (3, 70, 5000)):
        assembler = assembler_of(Landings(arena), encoding=encoding)
        found = [bytes(each) for piece in pieces(data, ends) for each in assembler.feed(piece)]
        assert found == [gzip.decompress(data[5:]) if encoding == b"gzip" else data[5:]]
        assert assembler.landing is None
        assert arena.blocks == 0


def test_message_that_turns_out_unusual_halfway_is_put_together_from_what_has_landed(arena: Arena) -> None:
    one = image(1).raw.SerializeToString()
    twice = pb.ClassifyRequest(images=[pb.Image(raw=pb.RawImage.FromString(one))]).SerializeToString()
    # The second image has its pixels twice: protobuf decides which count.
    pixels = pb.RawImage(pixels=bytes(LARGE)).SerializeToString()
    body = pb.Image.DESCRIPTOR.fields_by_name["raw"]
    both = block(body.number, one + pixels)
    data = twice + block(pb.ClassifyRequest.DESCRIPTOR.fields_by_name["images"].number, both)
    assembler = assembler_of(Landings(arena))
    message = assembled(assembler, raw.message(data), range(0, len(data), 10_000))
    assert message == data
    assert assembler.landing is None
    assert arena.blocks == 0
    parsed, payloads = CLASSIFY.parse(message)
    assert not payloads
    assert parsed.images[1].raw.pixels == bytes(LARGE)


def block(number: int, content: bytes) -> bytes:
    length, at = len(content), bytearray([number << 3 | 2])
    while length >= 0x80:
        at.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*at, length]) + content


def test_message_that_is_cut_short_inside_has_all_its_bytes(arena: Arena) -> None:
    data = classify(image(1)).SerializeToString()[:-1]
    assembler = assembler_of(Landings(arena))
    rest, payloads = assembled(assembler, raw.message(data), [500]).lifted()
    assert rest == data
    assert not payloads
    assembler.release()


def test_messages_on_their_way_use_a_quarter_of_the_memory(arena: Arena) -> None:
    landings = Landings(arena)
    data = raw.message(infer_request("floats", np.zeros(MIB // 2, np.float32)).SerializeToString())
    stalled = [assembler_of(landings, INFER) for _ in range(6)]
    for assembler in stalled:
        assert assembler.feed(data[:100]) == []
    assert arena.blocks == 4
    assert landings.bytes == arena.nbytes // 4
    for assembler in stalled:
        (message,) = assembler.feed(data[100:])
        assert isinstance(message, Landing) == (assembler in stalled[:4])
        assert len(message) == len(data) - 5
        assembler.release()
    assert landings.bytes == 0


def test_full_memory_lets_nothing_land(arena: Arena) -> None:
    full = arena.allocate(arena.nbytes)
    message = assembled(assembler_of(Landings(arena)), raw.message(classify(image(1)).SerializeToString()))
    assert isinstance(message, bytearray)
    arena.free(full)


def test_block_is_freed_when_the_last_one_releases_it_and_never_twice(arena: Arena) -> None:
    landings = Landings(arena)
    message = assembled(assembler_of(landings), raw.message(classify(image(1)).SerializeToString()))
    assert landings.bytes > 0
    message.adopt()
    message.adopt()
    assert landings.bytes == 0  # as inputs they no longer count
    for _ in range(3):
        assert arena.blocks == landings.blocks == 1
        message.release()
    assert arena.blocks == landings.blocks == 0
    with pytest.raises(AssertionError, match="released twice"):
        message.release()


# A front end between a client and an engine, both played by hand, on one loop.

IMAGES = TensorSpec("image", "uint8", (None, SIDE, SIDE, 3), ("N", "", "", ""))
LETTERS = Version(
    model="letters",
    version=1,
    state="READY",
    document=Document(task="classification", labels=["a", "b"], input=InputSpec(colour="RGB", height=SIDE, width=SIDE)),
    inputs=(IMAGES,),
    outputs=(TensorSpec(PROBABILITIES, "float32", (None, 2), ("N", "")),),
    batched=True,
    max_batch_size=8,
    batch_size=4,
)
COLOURS = Version(
    model="colours",
    version=1,
    state="READY",
    document=Document(task="segmentation", labels=["a", "b"], input=InputSpec(colour="RGB", fit="pad", multiple=4)),
    inputs=(TensorSpec("image", "uint8", (None, None, None, 3), ("N", "H", "W", "")),),
    outputs=tuple(TensorSpec(name, "uint8", (None, None, None), ("N", "H", "W")) for name in (MASK, CONFIDENCE)),
    batched=True,
    max_batch_size=8,
)
FLOATS = Version(
    model="floats",
    version=1,
    state="READY",
    inputs=(TensorSpec("x", "float32", (None, None), ("N", "length")),),
    outputs=(TensorSpec("y", "float32", (None, None), ("N", "length")),),
    batched=True,
    max_batch_size=8,
)
PAIRS = Version(
    model="pairs",
    version=1,
    state="READY",
    inputs=(TensorSpec("scale", "uint8", (None,), ("n",)), TensorSpec("x", "float32", (None,), ("length",))),
    outputs=(TensorSpec("y", "float32", (None,), ("length",)),),
)
LIMITS = Limits(message_bytes=64 * MIB, metadata_bytes=16 << 10, calls=100, min_ping_seconds=0)


class Playing(Engine):
    """Answers with the mean of each image, with the brightest channel of each pixel, or with twice the tensor."""

    def answer(self, request: Request) -> None:
        assert self.memory is not None
        values: Any = self.memory.array(request.inputs[-1])
        results: list[NDArray[Any]] = [values * 2]
        if request.model == "letters":
            means = values.reshape(len(values), -1).mean(axis=1) / 255
            results = [np.stack([means, 1 - means], axis=1).astype(np.float32)]
        elif request.model == "colours":
            results = [values.argmax(axis=3).astype(np.uint8) % 2, values.max(axis=3)]
        spans = []
        for room, result in zip(request.outputs, results, strict=True):
            spans.append(room._replace(dtype=result.dtype.name, shape=result.shape))
            self.memory.array(spans[-1])[...] = result
        self.channel.send([Answer(request.id, 1, Times(1, 2, 3, 4), tuple(spans))])


async def until(condition: Callable[[], object]) -> None:
    """Lets the loop turn until something holds."""
    async with asyncio.timeout(SECONDS):
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(0)


class FrontEnd:
    """All that a front end is made of, except its process."""

    def __init__(self, slot_bytes: int) -> None:
        self.catalogue = Catalogue(lambda model, version: None)
        self.client = EngineClient(slot_bytes, self.catalogue.update, lambda: None)
        self.arena = self.client.arena
        self.landings = Landings(self.arena)
        self.gate = Gate(100, 256 * MIB)
        self.threads = Threads(1, "decode")
        coalescer = Coalescer(self.catalogue, self.client)
        limits = LimitsConfig()
        decoder = Decoder(Pulse(page()), lambda digest, until: None)
        images = Vision(self.catalogue, self.client, limits, self.threads, decoder)
        tensors = InferenceService(
            catalogue=self.catalogue,
            client=self.client,
            limits=limits,
            threads=self.threads,
            metrics_directory=Path(),
            ready=lambda: True,
            decoder=decoder,
            extensions=(),
        )
        services = [
            service_of(VISION, images, self.gate, 100, coalescer, self.landings),
            service_of(INFERENCE, tensors, self.gate, 100, coalescer, self.landings),
        ]
        self.transport: Any = choose("nghttp2").make("127.0.0.1:0", services, LIMITS)
        self.engine = Playing(self.client)

    async def start(self) -> None:
        await self.transport.start()
        await self.publish(self.engine)

    async def publish(self, engine: Engine) -> None:
        engine.publish(LETTERS, COLOURS, FLOATS, PAIRS)
        await engine.take(lambda: self.catalogue.table.versions and engine.memory)

    @property
    def hub(self) -> Any:
        return self.transport._hub

    async def asked(self, count: int = 1, engine: Engine | None = None) -> list[Request]:
        """The requests that have reached the engine, once there are so many."""
        found = engine or self.engine

        def take() -> bool:
            while packet := found.channel.receive():
                for record in packet[0]:
                    found._take(record, packet[1])
            return len(found.requests) >= count

        await until(take)
        return found.requests

    async def ended(self) -> None:
        """Waits until nothing is in use any more."""
        await until(lambda: not self.arena.blocks and not self.hub.rooms.calls)
        assert (self.landings.blocks, self.landings.bytes, self.arena.used_bytes) == (0, 0, 0)
        assert (self.gate.requests, self.hub.receiving) == (0, 0)


class Caller:
    """A connection over which calls are sent in pieces."""

    def __init__(self, front_end: FrontEnd) -> None:
        host, port = front_end.transport.addresses[0].rsplit(":", 1)
        self._address = host, int(port)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._answers: dict[int, tuple[bytes, dict[str, str]]] = {}
        self._last = -1

    async def __aenter__(self) -> "Caller":
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        room = MIB.to_bytes(4, "big")  # for answers: INITIAL_WINDOW_SIZE of streams, and that of the connection
        settings = raw.frame(raw.SETTINGS, payload=b"\0\4" + room)
        self._writer.write(raw.MAGIC + settings + raw.frame(raw.WINDOW_UPDATE, payload=room))
        self._reading = asyncio.ensure_future(self._read())
        self._greeted = asyncio.Event()
        await self._greeted.wait()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reading.cancel()
        self._writer.close()

    async def begin(self, method: str, data: bytes, seconds: float = 0) -> int:
        """Sends the headers of a call and some data. Returns its stream."""
        service = VISION if method in VISION.methods_by_name else INFERENCE
        self._last += 2
        timeout = [("grpc-timeout", f"{round(1000 * seconds)}m")] if seconds else []
        headers = self._encoder.encode(raw.request(f"/{service.full_name}/{method}", *timeout))
        self._writer.write(raw.frame(raw.HEADERS, raw.END_HEADERS, self._last, headers))
        await self.send(self._last, data)
        return self._last

    async def send(self, stream: int, data: bytes, end: bool = False) -> None:
        for at in range(0, len(data), 50_000):
            self._writer.write(raw.frame(raw.DATA, 0, stream, data[at : at + 50_000]))
        if end:
            self._writer.write(raw.frame(raw.DATA, raw.END_STREAM, stream))
        await self._writer.drain()

    async def call(self, method: str, request: Message | bytes, seconds: float = 0) -> int:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        stream = await self.begin(method, raw.message(data), seconds)
        await self.send(stream, b"", end=True)
        return stream

    async def reset(self, stream: int) -> None:
        self._writer.write(raw.frame(raw.RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
        await self._writer.drain()

    async def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """The message of the answer, and its trailers."""
        await until(lambda: self._reading.done() or self.has_ended(stream))
        data, trailers = self._answers[stream]
        return data[5:], trailers

    def has_ended(self, stream: int) -> bool:
        """Whether the answer is there."""
        return "grpc-status" in self._answers.get(stream, (b"", {}))[1]

    async def status(self, stream: int) -> int:
        return int((await self.answer(stream))[1]["grpc-status"])

    async def _read(self) -> None:
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            data, pairs = self._answers.get(stream, (b"", {}))
            if kind == raw.SETTINGS and not flags & raw.ACK:
                self._writer.write(raw.frame(raw.SETTINGS, raw.ACK))
                self._greeted.set()
            elif kind == raw.HEADERS:
                self._answers[stream] = data, pairs | dict(self._decoder.decode(payload))
            elif kind == raw.DATA:
                self._answers[stream] = data + payload, pairs


Scenario = Callable[[FrontEnd, Caller], Coroutine[Any, Any, None]]


def run(scenario: Scenario, slot_bytes: int = 32 * MIB) -> None:
    """Plays a scenario. Afterwards nothing of the memory is in use."""
    skip_without("nghttp2")

    async def play() -> None:
        front_end = FrontEnd(slot_bytes)
        await front_end.start()
        async with Caller(front_end) as caller:
            await scenario(front_end, caller)
            await front_end.ended()
        await front_end.transport.stop(0)
        os.close(front_end.arena.descriptor)

    asyncio.run(asyncio.wait_for(play(), 60))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of each copy of pixels or tensors into a slot."""
    copies: list[int] = []
    pixels, tensors = prepare._copy_pixels, oip._copy

    def copy_pixels(images: Sequence[bytes], target: memoryview) -> None:
        copies.append(sum(map(len, images)))
        pixels(images, target)

    def copy_tensors(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], shared: Sequence[Any]) -> None:
        copies.extend(values.nbytes for _, values in pairs)
        tensors(pairs, shared)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_copy_pixels", copy_pixels)
        patch.setattr(oip, "_copy", copy_tensors)
        yield copies


def means(request: pb.ClassifyRequest) -> list[float]:
    return [float(np.frombuffer(each.raw.pixels, np.uint8).mean()) / 255 for each in request.images]


def answered_means(answer: bytes) -> list[float]:
    results = pb.ClassifyResponse.FromString(answer).results
    return [label.probability for each in results for label in each.classification.labels if label.name == "a"]


@pytest.mark.parametrize("landing_", [True, False])
def test_pixels_and_tensors_are_copied_once_from_the_socket_to_the_slot(
    monkeypatch: pytest.MonkeyPatch, landing_: bool
) -> None:
    request = classify(*[image(seed) for seed in range(8)])
    picture = pb.SegmentRequest(model="colours", images=[image(9, 200, 400)])
    values = np.random.default_rng(0).normal(size=(1, 150_000)).astype(np.float32)
    if not landing_:
        monkeypatch.setattr(Landings, "land", lambda *_: None)

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        with counted(monkeypatch) as copies:
            streams = [
                await caller.call("Classify", request),
                await caller.call("Segment", picture),
                await caller.call("ModelInfer", infer_request("floats", values)),
            ]
            requests = await front_end.asked(4)
            assert sorted(each.rows for each in requests) == [1, 1, 4, 4]
            for each in requests:
                front_end.engine.answer(each)
            answer, _ = await caller.answer(streams[0])
            assert answered_means(answer) == pytest.approx(means(request), abs=1e-6)
            segmented = pb.SegmentResponse.FromString((await caller.answer(streams[1]))[0])
            pixels = np.frombuffer(picture.images[0].raw.pixels, np.uint8).reshape(200, 400, 3)
            assert segmented.results[0].segmentation.mask == (pixels.argmax(axis=2) % 2).astype(np.uint8).tobytes()
            inferred = inference_pb2.ModelInferResponse.FromString((await caller.answer(streams[2]))[0])
            assert inferred.raw_output_contents[0] == (values * 2).tobytes()
        image_bytes = SIDE * SIDE * 3
        assert sorted(copies) == ([] if landing_ else [200 * 400 * 3, 4 * image_bytes, 4 * image_bytes, values.nbytes])

    run(scenario)


def test_images_with_others_between_them_are_copied_together(monkeypatch: pytest.MonkeyPatch) -> None:
    request = classify(image(1), image(2, 300, 300), image(3))

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        with counted(monkeypatch) as copies:
            stream = await caller.call("Classify", request)
            for each in await front_end.asked(2):
                front_end.engine.answer(each)
            answer, _ = await caller.answer(stream)
        assert answered_means(answer) == pytest.approx(means(request), abs=2e-3)
        assert answered_means(answer)[::2] == pytest.approx(means(request)[::2], abs=1e-6)
        assert copies == [2 * SIDE * SIDE * 3]

    run(scenario)


def test_input_that_has_not_landed_is_filled_beside_one_that_has(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    kind = inference_pb2.ModelInferRequest.InferInputTensor
    request = inference_pb2.ModelInferRequest(
        model_name="pairs",
        inputs=[
            kind(name="x", datatype="FP32", shape=[50_000]),
            kind(name="scale", datatype="UINT8", shape=[3]),
        ],
        raw_input_contents=[values.tobytes(), b"abc"],
    )

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        with counted(monkeypatch) as copies:
            stream = await caller.call("ModelInfer", request)
            (asked,) = await front_end.asked()
            assert front_end.engine.memory is not None
            scale, x = [front_end.engine.memory.array(span) for span in asked.inputs]
            assert scale.tobytes() == b"abc"
            assert x.tobytes() == values.tobytes()
            assert [span.number for span in asked.inputs] == [0, 1]
            front_end.engine.answer(asked)
            assert await caller.status(stream) == 0
        assert copies == [3]

    run(scenario)


def test_tensor_that_would_lie_askew_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first contents have an odd length, so the floats behind them are not aligned.
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    kind = inference_pb2.ModelInferRequest.InferInputTensor
    request = inference_pb2.ModelInferRequest(
        model_name="pairs",
        inputs=[kind(name="scale", datatype="UINT8", shape=[70_001]), kind(name="x", datatype="FP32", shape=[50_000])],
        raw_input_contents=[bytes(70_001), values.tobytes()],
    )

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        with counted(monkeypatch) as copies:
            stream = await caller.call("ModelInfer", request)
            front_end.engine.answer((await front_end.asked())[0])
            answer, _ = await caller.answer(stream)
        inferred = inference_pb2.ModelInferResponse.FromString(answer)
        assert inferred.raw_output_contents[0] == (values * 2).tobytes()
        assert copies == [values.nbytes]

    run(scenario)


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        ("Classify", classify(image(1), model="nobody"), 5, "model 'nobody' is unknown"),
        ("Classify", classify(image(1, SIDE, SIDE, nbytes=100_000)), 3, "raw image is 100000 bytes, want 101568"),
        ("Classify", b"\x1a\xe0\xa7\x12\x12\xdc\xa7\x12\x0a\xd8\xa7\x12" + bytes(300_000), 3, "is not a convoy.v1"),
        ("ModelInfer", infer_request("floats", np.zeros(100_000, np.float32)), 3, "input 'x' has rank 1"),
        ("ModelInfer", infer_request("floats", np.zeros((9, 30_000), np.float32)), 3, "has a batch of 9, want 1 to 8"),
    ],
)
def test_memory_of_a_refused_request_is_freed(method: str, request_: Message | bytes, code: int, words: str) -> None:
    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        stream = await caller.begin(method, raw.message(as_bytes(request_))[:90_000])
        await until(lambda: front_end.landings.blocks)
        await caller.send(stream, raw.message(as_bytes(request_))[90_000:], end=True)
        _, trailers = await caller.answer(stream)
        assert int(trailers["grpc-status"]) == code
        assert words in trailers["grpc-message"]

    run(scenario)


def as_bytes(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def test_memory_of_a_call_that_ends_halfway_is_freed() -> None:
    data = raw.message(classify(*[image(seed) for seed in range(8)]).SerializeToString())

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        async def halfway(who: Caller, seconds: float = 0) -> int:
            stream = await who.begin("Classify", data[:300_000], seconds)
            # On a machine that stands still, the time is over before all has arrived.
            await until(
                lambda: (front_end.landings.blocks and front_end.hub.receiving > 299_000) or who.has_ended(stream)
            )
            return stream

        await caller.reset(await halfway(caller))
        await front_end.ended()
        assert await caller.status(await halfway(caller, 1.5)) == 4
        await front_end.ended()
        async with Caller(front_end) as other:
            await halfway(other)
        await front_end.ended()
        late = await halfway(caller)
        await caller.send(late, b"", end=True)  # half of a message is none
        assert await caller.status(late) == 13
        await front_end.ended()
        several = await caller.begin("Classify", data + raw.message(b""))
        assert await caller.status(several) == 13

    run(scenario)


def test_complete_message_of_a_caller_that_goes_before_its_end_is_freed() -> None:
    data = raw.message(classify(image(1)).SerializeToString())

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        stream = await caller.begin("Classify", data)
        await until(lambda: front_end.landings.blocks)
        await caller.reset(stream)

    run(scenario)


def test_memory_of_a_cancelled_request_is_kept_until_the_engines_last_word() -> None:
    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        stream = await caller.call("Classify", classify(*[image(seed) for seed in range(8)]))
        first, second = await front_end.asked(2)
        assert (front_end.landings.blocks, front_end.landings.bytes) == (1, 0)
        await caller.reset(stream)
        await until(lambda: not front_end.hub.rooms.calls)
        front_end.engine.answer(first)
        await until(lambda: front_end.arena.blocks == 2)
        assert front_end.landings.blocks == 1
        front_end.engine.channel.send([Failure(second.id, RunFailed("let go"))])

    run(scenario)


def test_deadline_that_passes_in_the_engine_frees_the_memory_after_its_answer() -> None:
    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        values = np.zeros((1, 100_000), np.float32)
        for seconds in (1.5, 10.0):  # on a machine that stands still, a short time is over before the engine is asked
            stream = await caller.call("ModelInfer", infer_request("floats", values), seconds)
            assert await caller.status(stream) == 4
            await front_end.engine.take(lambda: True)
            if front_end.engine.requests:
                break
        (request,) = front_end.engine.requests
        assert front_end.landings.blocks == 1
        front_end.engine.answer(request)

    run(scenario)


def test_next_engine_reads_what_landed_for_the_dead_one() -> None:
    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        request = classify(*[image(seed) for seed in range(3)])
        stream = await caller.call("Classify", request)
        await front_end.asked(2)
        front_end.engine.die()
        second = Playing(front_end.client)
        await front_end.publish(second)
        for each in await front_end.asked(2, second):
            second.answer(each)
        answer, _ = await caller.answer(stream)
        assert answered_means(answer) == pytest.approx(means(request), abs=1e-6)

    run(scenario)


def test_memory_of_a_cancelled_request_lives_until_its_thread_has_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    seen: list[bytes] = []
    from_raw = prepare.from_raw

    def slowly(pixels: Any, *more: Any) -> Any:
        reading.set()
        assert go_on.wait(SECONDS)
        seen.append(bytes(pixels))
        return from_raw(pixels, *more)

    monkeypatch.setattr(prepare, "from_raw", slowly)
    request = classify(image(5, 300, 300))  # to be resized

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        stream = await caller.call("Classify", request)
        await until(reading.is_set)
        await caller.reset(stream)
        await until(lambda: not next(iter(front_end.hub.connections)).exchanges)
        assert front_end.landings.blocks == 1
        # Another caller lands elsewhere.
        other = await caller.begin("Classify", raw.message(classify(image(6)).SerializeToString())[:100_000])
        await until(lambda: front_end.landings.blocks == 2)
        go_on.set()
        await until(lambda: front_end.landings.blocks == 1)
        await caller.reset(other)

    run(scenario)
    assert seen == [request.images[0].raw.pixels]


def test_callers_that_stall_do_not_stop_the_others() -> None:
    data = raw.message(infer_request("floats", np.zeros((1, 50_000), np.float32)).SerializeToString())
    values = np.random.default_rng(0).normal(size=(1, 40_000)).astype(np.float32)

    async def scenario(front_end: FrontEnd, caller: Caller) -> None:
        stalled = [await caller.begin("ModelInfer", data[:150_000]) for _ in range(12)]
        await until(lambda: front_end.hub.receiving > 12 * 149_000)
        assert front_end.landings.blocks == 1  # of 200 kB; a quarter of the memory is 256 kB
        stream = await caller.call("ModelInfer", infer_request("floats", values))
        front_end.engine.answer((await front_end.asked())[0])
        answer, _ = await caller.answer(stream)
        assert inference_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0] == (values * 2).tobytes()
        for each in stalled:
            await caller.reset(each)

    run(scenario, MIB)
