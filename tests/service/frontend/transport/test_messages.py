"""gRPC's framing and headers."""

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.frontend.status import Code
from convoy.service.frontend.transport import messages
from convoy.service.frontend.transport.messages import Assembler, Refused, inflated, percent_encoded, seconds

LIMIT = 1 << 22
BOMB = 1 << 26  # bytes


def framed(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


def cut(data: bytes, ends: list[int]) -> list[bytes]:
    places = [0, *sorted(end % (len(data) + 1) for end in ends), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def fed(assembler: Assembler, chunk: bytes) -> list[bytes | bytearray]:
    """All messages of a chunk, however few the assembler returns at once."""
    found = assembler.feed(chunk)
    while rest := assembler.rest:
        assembler.rest = b""
        found += assembler.feed(rest, 1)
    return found


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=8),
    st.lists(st.integers(0, 5000), max_size=20),
)
def test_how_messages_are_cut_into_frames_makes_no_difference(sent: list[tuple[bytes, bool]], ends: list[int]) -> None:
    data = b"".join(framed(zlib.compress(message), 1) if packed else framed(message) for message, packed in sent)
    assembler = Assembler(LIMIT, b"deflate")
    found = [message for chunk in cut(data, ends) for message in fed(assembler, chunk)]
    assert found == [message for message, _ in sent]
    assert not assembler.inside


@given(st.binary(min_size=1, max_size=200), st.integers(1, 300))
def test_message_that_is_not_complete_is_seen(message: bytes, missing: int) -> None:
    data = framed(message)
    assembler = Assembler(LIMIT, b"identity")
    part = data[: max(1, len(data) - missing)]
    assert assembler.feed(part) == []
    assert assembler.inside


@pytest.mark.parametrize("step", [1000, 16_384, 1 << 20])
def test_long_message_is_whole_and_not_allocated_before_it_arrives(step: int) -> None:
    message = bytes(range(256)) * (3 << 12)
    assert len(messages.place(1 << 30)) < 1 << 20
    assembler = Assembler(LIMIT, b"identity")
    data = framed(message) + framed(b"next")
    found = [each for at in range(0, len(data), step) for each in fed(assembler, data[at : at + step])]
    assert found == [message, b"next"]


@pytest.mark.parametrize(
    ("data", "encoding", "code", "words"),
    [
        (b"\2\0\0\0\0", b"identity", Code.INTERNAL, "compressed flag of a message is 2"),
        (framed(b"a", 1), b"identity", Code.INTERNAL, "has no grpc-encoding"),
        (framed(b"a", 1), b"gzip", Code.INTERNAL, "message is not gzip"),
        (framed(gzip.compress(b"a", mtime=0)[:-3], 1), b"gzip", Code.INTERNAL, "message is not gzip"),
        (framed(zlib.compress(b"a") + b"b", 1), b"deflate", Code.INTERNAL, "message is not deflate"),
        (b"\0\xff\xff\xff\xff", b"identity", Code.RESOURCE_EXHAUSTED, "message has 4294967295 bytes, want at most"),
        (framed(gzip.compress(bytes(BOMB), mtime=0), 1), b"gzip", Code.RESOURCE_EXHAUSTED, "once it is inflated"),
    ],
)
def test_message_that_cannot_be_read_is_refused_in_words(data: bytes, encoding: bytes, code: Code, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        Assembler(LIMIT, encoding).feed(data)
    assert caught.value.code is code


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_message_may_be_as_long_as_the_limit_once_it_is_inflated(encoding: bytes, pack: object) -> None:
    assert callable(pack)
    assert len(inflated(pack(bytes(1000)), encoding, 1000)) == 1000
    with pytest.raises(Refused):
        inflated(pack(bytes(1001)), encoding, 1000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"1S", 1), (b"20m", 0.02), (b"3u", 3e-6), (b"00000007n", 7e-9), (b"2M", 120), (b"0S", 0)],
)
def test_timeouts_are_read(text: bytes, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


def test_longest_timeout_is_read() -> None:
    assert seconds(b"99999999H") == 99_999_999 * 3600


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1s", b"123456789S", b"-1S", b"1.5S", b" 1S", b"1 S", b"\xb2S"])
def test_wrong_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(Refused, match="grpc-timeout is"):
        seconds(text)


def test_messages_of_a_status_are_percent_encoded() -> None:
    assert percent_encoded("plain words") == b"plain words"
    assert percent_encoded("100 %\nü") == b"100 %25%0A%C3%BC"
    assert percent_encoded("\ud800") == b"?"
