"""Large payloads are read where they came; all else of a message is what protobuf says it is."""

import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.errors import BadRequest
from convoy.service.frontend import tensors, wire
from convoy.service.frontend.wire import LARGE, AsItIs, Parser
from convoy.service.images.decode import from_raw
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import TensorSpec, Version
from tests.service.calls import infer_request

CLASSIFY = Parser(pb.ClassifyRequest.DESCRIPTOR, "images.raw.pixels")
STREAMED = Parser(pb.SegmentStreamRequest.DESCRIPTOR, "request.images.raw.pixels")
INFER = Parser(inference_pb2.ModelInferRequest.DESCRIPTOR, "raw_input_contents")


def raw(nbytes: int, seed: int = 0) -> pb.Image:
    pixels = np.random.default_rng(seed).bytes(nbytes)
    return pb.Image(raw=pb.RawImage(pixels=pixels, height_px=nbytes, width_px=1, channels=1))


def put_back(request: pb.ClassifyRequest, payloads: Mapping[int, memoryview]) -> pb.ClassifyRequest:
    """The message as protobuf alone would have parsed it."""
    for number, payload in payloads.items():
        assert not request.images[number].raw.pixels
        if request.images[number].WhichOneof("source") == "raw":
            request.images[number].raw.pixels = bytes(payload)
    return request


def lies_in(payload: Any, data: bytes) -> bool:
    return np.shares_memory(np.frombuffer(payload, np.uint8), np.frombuffer(data, np.uint8))


def test_large_pixels_are_a_view_of_what_came_and_small_ones_are_in_the_message() -> None:
    for nbytes in (0, 1, LARGE - 1, LARGE, 3 * LARGE):
        request = pb.ClassifyRequest(model="letters", version=7, images=[raw(nbytes)], top_k=3)
        data = request.SerializeToString()
        message, payloads = CLASSIFY.parse(data)
        assert list(payloads) == ([0] if nbytes >= LARGE else [])
        assert all(lies_in(payload, data) for payload in payloads.values())
        assert put_back(message, payloads) == request


def test_each_payload_has_the_number_of_its_image() -> None:
    images = [raw(LARGE, 1), pb.Image(encoded=b"x" * LARGE), raw(10, 2), pb.Image(), raw(2 * LARGE, 3)]
    request = pb.SegmentStreamRequest(id=9, deadline_seconds=0.5, request=pb.SegmentRequest(images=images, format=2))
    message, payloads = STREAMED.parse(request.SerializeToString())
    assert sorted(payloads) == [0, 4]
    put_back(message.request, payloads)
    assert message == request


def test_message_whose_first_payload_is_small_is_left_to_protobuf() -> None:
    request = pb.ClassifyRequest(images=[raw(10), raw(LARGE)])
    message, payloads = CLASSIFY.parse(request.SerializeToString())
    assert not payloads
    assert message == request


def field(number: int, body: bytes) -> bytes:
    length = len(body)
    out = bytearray([number << 3 | 2])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(out) + bytes([length]) + body


PIECES = st.one_of(
    st.integers(0, 300).map(lambda nbytes: field(1, bytes(nbytes))),  # pixels: the last ones count
    st.integers(0, 2**32 - 1).map(lambda side: pb.RawImage(height_px=side).SerializeToString()),
    st.just(b"\x99\x01" + bytes(8)),  # fields that nobody knows, of 8 bytes, of 4, and a number
    st.just(b"\x9d\x01" + bytes(4)),
    st.just(b"\x98\x01\xff\x01"),
    st.binary(max_size=200).map(lambda body: field(9, body)),
)
SOURCES = st.one_of(
    st.lists(PIECES, max_size=4).map(lambda pieces: field(2, b"".join(pieces))),
    st.binary(max_size=300).map(lambda body: field(1, body)),
)
IMAGES = st.lists(SOURCES, max_size=3).map(lambda sources: field(3, b"".join(sources)))
OTHERS = st.one_of(
    st.just(pb.ClassifyRequest(model="m", version=-1, top_k=2).SerializeToString()),
    st.binary(max_size=100).map(lambda body: field(11, body)),
)


@pytest.fixture(autouse=True, scope="module")
def lower() -> Any:
    """What is large is small here, so that many messages have something large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "LARGE", 64)
        patch.setattr("tests.service.frontend.test_wire.LARGE", 64)
        yield


@given(st.lists(st.one_of(IMAGES, OTHERS), max_size=6).map(b"".join))
def test_any_message_is_what_protobuf_parses(data: bytes) -> None:
    whole = pb.ClassifyRequest.FromString(data)
    message, payloads = CLASSIFY.parse(data)
    assert put_back(message, payloads) == whole
    assert all(lies_in(payload, data) for payload in payloads.values())


@given(st.data())
def test_message_that_is_cut_short_or_damaged_is_refused_or_parsed_as_protobuf_does(choices: st.DataObject) -> None:
    data = bytearray(pb.ClassifyRequest(model="m", images=[raw(100), raw(200)], top_k=1).SerializeToString())
    if choices.draw(st.booleans()):
        del data[choices.draw(st.integers(0, len(data))) :]
    for _ in range(choices.draw(st.integers(0, 3))):
        if data:
            data[choices.draw(st.integers(0, len(data) - 1))] = choices.draw(st.integers(0, 255))
    try:
        whole = pb.ClassifyRequest.FromString(bytes(data))
    except Exception:
        with pytest.raises(BadRequest, match=r"is not a convoy\.v1\.ClassifyRequest message"):
            CLASSIFY.parse(bytes(data))
        return
    message, payloads = CLASSIFY.parse(bytes(data))
    assert put_back(message, payloads) == whole


@pytest.mark.parametrize("data", [b"\x08\x01", b"\xff", b"\x0a\0", b"\x1a\x02\x12\0", b"\x80"])
def test_message_that_is_made_to_be_slow_is_no_slower_than_protobuf(data: bytes) -> None:
    slow = data * (8_000_000 // len(data))
    took = []
    for parse in (pb.ClassifyRequest.FromString, CLASSIFY.parse):
        began = time.thread_time()
        with suppress(DecodeError, BadRequest):
            parse(slow)
        took.append(time.thread_time() - began)
    assert took[1] < 2 * took[0] + 0.05


# The same piece by piece, as the message arrives.


def arrived(parser: Parser, data: bytes, ends: Sequence[int]) -> tuple[bytearray | None, dict[int, bytes], int]:
    """The rest of a message that is cut at these places, its payloads, and the bytes accepted."""
    payloads: dict[int, bytearray] = defaultdict(bytearray)
    lifting = parser.lifting(len(data), lambda number, part: payloads[number].extend(part))
    places = sorted({0, *[end % (len(data) + 1) for end in ends], len(data)})
    accepted = 0
    for begin, end in itertools.pairwise(places):
        accepted += lifting.write(memoryview(data)[begin:end])
        assert lifting.so_far(memoryview(b"".join(payloads.values()))) == data[:accepted]
        if accepted < end:
            break
    return lifting.message(), {number: bytes(payload) for number, payload in payloads.items()}, accepted


@given(st.lists(st.one_of(IMAGES, OTHERS), max_size=6).map(b"".join), st.lists(st.integers(0, 5000), max_size=40))
def test_how_a_message_is_cut_makes_no_difference(data: bytes, ends: list[int]) -> None:
    message, payloads = CLASSIFY.parse(data)
    rest, found, accepted = arrived(CLASSIFY, data, ends)
    if not payloads:
        assert rest is None
        return
    assert accepted == len(data)
    assert rest is not None
    assert pb.ClassifyRequest.FromString(bytes(rest)) == message
    assert found == {number: bytes(payload) for number, payload in payloads.items()}


@given(st.lists(st.integers(64, 300), min_size=1, max_size=5), st.booleans(), st.lists(st.integers(0, 3000)))
def test_tensors_are_lifted_wherever_the_message_is_cut(sizes: list[int], first: bool, ends: list[int]) -> None:
    contents = [np.random.default_rng(size).bytes(size) for size in sizes]
    head = inference_pb2.ModelInferRequest(model_name="m", id="17").SerializeToString()
    raws = inference_pb2.ModelInferRequest(raw_input_contents=contents).SerializeToString()
    rest, found, _ = arrived(INFER, raws + head if first else head + raws, ends)
    assert list(found.values()) == contents
    assert rest is not None
    message = inference_pb2.ModelInferRequest.FromString(bytes(rest))
    assert (message.model_name, list(message.raw_input_contents)) == ("m", [b""] * len(sizes))


@given(st.data())
def test_damaged_message_is_accepted_only_where_protobuf_accepts_it(choices: st.DataObject) -> None:
    data = bytearray(pb.ClassifyRequest(model="m", images=[raw(100), raw(200)], top_k=1).SerializeToString())
    for _ in range(choices.draw(st.integers(1, 3))):
        data[choices.draw(st.integers(0, len(data) - 1))] = choices.draw(st.integers(0, 255))
    rest, found, _ = arrived(CLASSIFY, bytes(data), choices.draw(st.lists(st.integers(0, 400))))
    if rest is not None:
        try:
            whole = pb.ClassifyRequest.FromString(bytes(data))
        except DecodeError:
            with pytest.raises(DecodeError):
                pb.ClassifyRequest.FromString(bytes(rest))
        else:
            message = pb.ClassifyRequest.FromString(bytes(rest))
            assert put_back(message, {number: memoryview(payload) for number, payload in found.items()}) == whole


@pytest.mark.parametrize("sizes", [(100_000,), (70_000, 3_000_000), (5_000_000, 10, 66_000)])
def test_lengths_of_any_number_of_bytes_are_adjusted(sizes: tuple[int, ...]) -> None:
    request = pb.SegmentStreamRequest(id=9, request=pb.SegmentRequest(images=[raw(size) for size in sizes], format=2))
    rest, found, _ = arrived(STREAMED, request.SerializeToString(), range(0, 9_000_000, 16_384))
    assert rest is not None
    message = pb.SegmentStreamRequest.FromString(bytes(rest))
    put_back(message.request, {number: memoryview(payload) for number, payload in found.items()})
    assert message == request
    assert list(found) == [number for number, size in enumerate(sizes) if size >= LARGE]


@pytest.mark.parametrize(
    "request_",
    [
        pb.ClassifyRequest(images=[pb.Image(encoded=bytes(300_000))]),  # nothing to lift
        pb.ClassifyRequest(model="m" * 70_000, images=[raw(300_000)]),  # too far behind
    ],
)
def test_message_that_gains_nothing_is_given_up_before_much_of_it_is_kept(request_: pb.ClassifyRequest) -> None:
    rest, found, accepted = arrived(CLASSIFY, request_.SerializeToString(), [])
    assert rest is None
    assert not found
    assert accepted < 100


def test_payload_without_a_place_is_given_up_where_it_begins() -> None:
    def refuse(number: int, part: memoryview) -> None:
        raise AsItIs

    data = pb.ClassifyRequest(model="m", images=[raw(500)]).SerializeToString()
    lifting = CLASSIFY.lifting(len(data), refuse)
    accepted = lifting.write(memoryview(data))
    assert 0 < accepted < 30
    assert lifting.so_far(memoryview(b"")) == data[:accepted]
    assert lifting.write(memoryview(data)[accepted:]) == 0
    assert lifting.message() is None


# From there to the slot: views, until the one copy into it.


def test_raw_pixels_reach_the_slot_without_a_copy_on_the_way() -> None:
    data = pb.ClassifyRequest(images=[raw(2 * LARGE)]).SerializeToString()
    _, payloads = CLASSIFY.parse(data)
    pixels = from_raw(payloads[0], 2 * LARGE, 1, 1, "L", 10**6).pixels
    assert lies_in(pixels.reshape(-1), data)
    # The check sees a copy: what protobuf gives is one.
    assert not lies_in(pb.ClassifyRequest.FromString(data).images[0].raw.pixels, data)


def test_raw_tensors_reach_the_slot_without_a_copy_on_the_way() -> None:
    values = np.random.default_rng(0).normal(size=(2, LARGE)).astype(np.float32)
    data = infer_request("m", values).SerializeToString()
    request, payloads = INFER.parse(data)
    row = Version(
        model="m",
        version=1,
        state="READY",
        batched=True,
        max_batch_size=4,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, LARGE), names=("N", "")),),
    )
    (array,) = tensors.read(request, row, 10**6, payloads).arrays
    assert lies_in(array.view(np.uint8).reshape(-1), data)
    np.testing.assert_array_equal(array, values)
