"""Every record arrives as it was sent, in order, with its own descriptors; and sending never blocks."""

import asyncio
import math
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.dtypes import DTYPES
from convoy.service.errors import (
    BadTensor,
    ConvoyError,
    DeadlinePassed,
    EngineDied,
    ModelUnavailable,
    QueueFull,
    RunFailed,
    UnknownModel,
)
from convoy.service.ipc.channel import (
    DEADLY,
    FAILED,
    Answer,
    Cancel,
    Cancelled,
    Channel,
    Failure,
    Hello,
    Record,
    Release,
    Request,
    TableFile,
    Times,
    Wire,
    _encode,
)
from convoy.service.ipc.slots import MAX_RANK, SPILLED, Span
from convoy.service.supervisor.processes import channel_pair
from tests.service.descriptors import open_descriptors

MAX_MESSAGE = 1024  # bytes of a failure's text

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=64)
IDS = st.integers(0, 2**64 - 1)
VERSIONS = st.integers(1, 10**18 - 1)
SECONDS = st.floats(0, allow_nan=False)
SPANS = st.builds(
    Span,
    st.integers(0, 255),
    st.integers(0, SPILLED - 1),
    st.integers(0, 2**64 - 1),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 2**63 - 1), max_size=MAX_RANK).map(tuple),
)
TENSORS = st.lists(SPANS, max_size=6).map(tuple)
COUNTS = st.integers(0, 2**32 - 1)
PAIRS = st.tuples(COUNTS, COUNTS)
PLAIN_RECORDS = st.one_of(
    st.builds(
        Request,
        IDS,
        COUNTS,
        COUNTS,
        SECONDS,
        SECONDS,
        st.booleans(),
        NAMES,
        VERSIONS,
        TENSORS,
        TENSORS,
        PAIRS,
        st.booleans(),
        COUNTS,
        COUNTS,
    ),
    st.builds(Cancel, IDS),
    st.builds(Release, NAMES, VERSIONS),
    st.builds(Answer, IDS, COUNTS, st.builds(Times, *[SECONDS] * 4), TENSORS, st.lists(COUNTS, max_size=4).map(tuple)),
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    here, there = (Channel(end) for end in channel_pair())
    yield here, there
    here.close()
    there.close()


@pytest.fixture
def file() -> Iterator[int]:
    """A descriptor to send; its content tells it from others."""
    descriptor = filled(b"sent")
    yield descriptor
    os.close(descriptor)


def filled(content: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content)
    return descriptor


def content_of(descriptor: int) -> bytes:
    return os.pread(descriptor, 100, 0)


def packets(channel: Channel) -> list[tuple[list[Record], list[int]]]:
    found = []
    while packet := channel.receive():
        found.append(packet)
    return found


def received(channel: Channel) -> list[Record]:
    return [record for records, _ in packets(channel) for record in records]


def request(number: int, tensors: int = 1) -> Request:
    spans = tuple(Span(place, 64 * place, 64, "uint8", (64,)) for place in range(tensors))
    return Request(number, 0, 1, 1.0, model="model", version=1, inputs=spans, outputs=spans)


def spilled(number: int, outputs: int) -> Answer:
    spans = tuple(Span(place, SPILLED, 4, "uint8", (4,)) for place in range(outputs))
    return Answer(number, 1, Times(1, 2, 3, 4), spans)


@given(st.lists(PLAIN_RECORDS, min_size=1, max_size=20))
def test_records_arrive_as_they_were_sent(records: list[Record]) -> None:
    here, there = (Channel(end) for end in channel_pair())
    here.send(records)
    assert received(there) == records
    here.close()
    there.close()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_of_a_tensor_arrives(ends: tuple[Channel, Channel], dtype: str) -> None:
    span = Span(3, 128, 8, dtype, (2, 4))
    ends[0].send([msgspec.structs.replace(request(1), inputs=(span,), outputs=())])
    (arrived,) = received(ends[1])
    assert isinstance(arrived, Request)
    assert arrived.inputs == (span,)
    assert arrived.outputs == ()


def test_longest_name_and_a_deadline_that_never_comes_arrive(ends: tuple[Channel, Channel]) -> None:
    name = "n" * 64
    sent = [msgspec.structs.replace(request(2**64 - 1), model=name, version=10**18 - 1), Release(name, 10**18 - 1)]
    ends[0].send(sent)
    assert received(ends[1]) == sent


def test_record_with_as_many_tensors_as_fit_arrives(ends: tuple[Channel, Channel]) -> None:
    ends[0].send([request(1, tensors=255), request(2)])
    assert received(ends[1]) == [request(1, tensors=255), request(2)]


def test_many_records_travel_in_several_packets_in_order(ends: tuple[Channel, Channel]) -> None:
    sent: list[Record] = [request(number) for number in range(800)]
    ends[0].send(sent)
    assert not ends[0].waiting
    found = packets(ends[1])
    assert 1 < len(found) < 40
    assert [record for records, _ in found for record in records] == sent


def test_few_records_travel_in_one_packet(ends: tuple[Channel, Channel]) -> None:
    ends[0].send([request(number) for number in range(32)])
    assert len(packets(ends[1])) == 1


def test_nothing_to_send_sends_nothing(ends: tuple[Channel, Channel]) -> None:
    ends[0].send([])
    assert ends[1].receive() is None


def test_full_socket_does_not_block_and_flush_goes_on(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    sent: list[Record] = []
    while not here.waiting:
        assert len(sent) < 1_000_000
        more: list[Record] = [request(len(sent) + number) for number in range(200)]
        here.send(more)
        sent += more
    late: list[Record] = [Cancel(1), Cancel(2)]
    here.send(late)  # behind what waits, not before it
    arrived: list[Record] = []
    while here.waiting:
        arrived += received(there)
        here.flush()
    arrived += received(there)
    assert arrived == sent + late


def test_descriptors_travel_with_their_records(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    before = open_descriptors()
    names = [f"file {number}".encode() for number in range(5)]
    files = [filled(name) for name in names]
    sent: list[Record] = [Hello(4096), request(1), spilled(2, outputs=3), Cancel(3), TableFile(17)]
    here.send(sent, files)
    for file in files:
        os.close(file)  # the sender's own: what travels are duplicates
    ((records, descriptors),) = packets(there)
    assert records == sent
    assert [content_of(descriptor) for descriptor in descriptors] == names
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    assert open_descriptors() <= before


def test_more_descriptors_than_one_packet_takes_are_not_crossed(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    before = open_descriptors()
    names = [str(number).encode() for number in range(150)]
    files = [filled(name) for name in names]
    here.send([spilled(number, outputs=3) for number in range(50)], files)
    for file in files:
        os.close(file)
    found = packets(there)
    assert len(found) > 1
    at = 0
    for records, descriptors in found:
        wanted = sum(len(record.outputs) for record in records if isinstance(record, Answer))
        assert [content_of(descriptor) for descriptor in descriptors] == names[at : at + wanted]
        at += wanted
        for descriptor in descriptors:
            os.close(descriptor)
    assert at == 150
    assert open_descriptors() <= before


def test_descriptors_that_still_wait_are_closed_with_the_channel(file: int) -> None:
    before = open_descriptors()
    here, there = (Channel(end) for end in channel_pair())
    while not here.waiting:
        here.send([TableFile(1)] * 64, [file] * 64)
    assert len(open_descriptors() - before) > 2
    here.close()
    there.close()
    assert open_descriptors() <= before


def test_answer_in_its_slot_carries_no_descriptor(ends: tuple[Channel, Channel]) -> None:
    ends[0].send([Answer(1, 1, Times(1, 2, 3, 4), (Span(0, 0, 4, "uint8", (4,)),))])
    ((_, descriptors),) = packets(ends[1])
    assert not descriptors


def test_the_other_sides_end_is_seen_by_both_directions(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.send([Cancel(7)])
    there.close()
    last_words = here.receive()
    assert last_words is not None
    assert last_words[0] == [Cancel(7)]
    with pytest.raises(ConnectionError):
        here.receive()
    with pytest.raises(ConnectionError):
        here.send([Cancel(1)])


def test_silence_is_not_the_end(ends: tuple[Channel, Channel]) -> None:
    assert ends[0].receive() is None


@pytest.mark.parametrize(
    "kind", [RunFailed, QueueFull, DeadlinePassed, UnknownModel, ModelUnavailable, BadTensor, Cancelled]
)
@pytest.mark.parametrize("retry_after", [None, 0.0, 0.25, 10.0])
def test_failure_arrives_with_its_class_text_and_hint(
    ends: tuple[Channel, Channel], kind: type[ConvoyError], retry_after: float | None
) -> None:
    ends[0].send([Failure(9, kind("want ≥ 3 images", retry_after=retry_after))])
    (arrived,) = received(ends[1])
    assert isinstance(arrived, Failure)
    assert arrived.id == 9
    assert type(arrived.error) is kind
    assert arrived.error.message == "want ≥ 3 images"
    assert arrived.error.retry_after == retry_after


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=MAX_MESSAGE + 50))
def test_text_of_a_failure_is_cut_and_nothing_behind_it_is_lost(text: str) -> None:
    here, there = (Channel(end) for end in channel_pair())
    here.send([Failure(1, RunFailed(text)), Cancel(2)])
    failure, cancel = received(there)
    assert isinstance(failure, Failure)
    assert cancel == Cancel(2)
    if len(text.encode()) <= MAX_MESSAGE:
        assert failure.error.message == text
    else:
        # A character that the cut went through is replaced, the others stay.
        assert text.startswith(failure.error.message.rstrip("\N{REPLACEMENT CHARACTER}"))
    here.close()
    there.close()


@pytest.mark.parametrize("before_the_cut", [0, 1, 2])
def test_cut_through_a_character_spoils_only_that_one(ends: tuple[Channel, Channel], before_the_cut: int) -> None:
    text = "x" * (MAX_MESSAGE - before_the_cut) + "€" * 500
    ends[0].send([Failure(1, RunFailed(text)), Failure(2, QueueFull("short", retry_after=math.pi))])
    failure, short = received(ends[1])
    assert isinstance(failure, Failure)
    assert isinstance(short, Failure)
    whole = failure.error.message.rstrip("\N{REPLACEMENT CHARACTER}")
    assert whole == text[: MAX_MESSAGE - before_the_cut]
    assert (short.error.message, short.error.retry_after) == ("short", math.pi)


def test_wire_carries_both_ways_and_ends_once(file: int) -> None:
    ended: list[str] = []

    async def talk() -> tuple[list[Record], list[Record]]:
        ends = channel_pair()
        here_found: list[Record] = []
        there_found: list[Record] = []
        over = asyncio.Event()

        def end(name: str) -> None:
            ended.append(name)
            over.set()

        def at_there(records: list[Record], descriptors: list[int]) -> None:
            there_found.extend(records)
            for descriptor in descriptors:
                os.close(descriptor)
            there.send([Cancel(record.id) for record in records if isinstance(record, Request)])

        def at_here(records: list[Record], descriptors: list[int]) -> None:
            here_found.extend(records)
            if len(here_found) == 5000:
                there.close()

        here = Wire(ends[0], at_here, lambda: end("here"))
        there = Wire(ends[1], at_there, lambda: end("there"))
        # More than the socket takes: the rest leaves when the loop finds it writable.
        here.send([Hello(1), *(request(number) for number in range(5000))], [file])
        while len(ended) < 2:
            over.clear()
            await asyncio.wait_for(over.wait(), 10)
        here.send([Cancel(1)])  # dropped
        here.close()
        there.close()
        return here_found, there_found

    before = open_descriptors()
    here_found, there_found = asyncio.run(talk())
    assert there_found == [Hello(1), *(request(number) for number in range(5000))]
    assert here_found == [Cancel(number) for number in range(5000)]
    assert sorted(ended) == ["here", "there"]
    assert open_descriptors() <= before


def test_wire_whose_other_side_has_gone_closes_when_it_sends() -> None:
    ended: list[bool] = []

    async def talk() -> None:
        ends = channel_pair()
        wire = Wire(ends[0], lambda records, descriptors: None, lambda: ended.append(True))
        ends[1].close()
        wire.send([Cancel(1)])
        wire.send([Cancel(2)])

    asyncio.run(talk())
    assert ended == [True]


def test_packets_are_kept_apart_by_the_socket() -> None:
    here, there = channel_pair()
    assert here.type == there.type == socket.SOCK_SEQPACKET
    here.close()
    there.close()


def test_answer_says_which_rows_have_no_outputs_and_why() -> None:
    answer = Answer(1, 4, Times(1, 2, 3, 4), ())
    assert answer.errors() == {}
    errors = msgspec.structs.replace(answer, failed=(0, 3), skipped=(2,)).errors()
    assert {row: (type(error), error.message) for row, error in errors.items()} == {
        0: (RunFailed, FAILED), 3: (RunFailed, FAILED), 2: (EngineDied, DEADLY),
    }  # fmt: skip
    assert set(msgspec.structs.replace(answer, skipped=(1,)).errors()) == {1}
    assert set(msgspec.structs.replace(answer, failed=(1,)).errors()) == {1}


def test_wire_whose_other_side_goes_while_records_wait_closes_once() -> None:
    ended: list[bool] = []

    async def talk() -> None:
        ends = channel_pair()
        wire = Wire(ends[0], lambda records, descriptors: None, lambda: ended.append(True))
        wire.send([request(number) for number in range(5000)])
        wire._writable()  # it is not, really
        assert wire._channel.waiting
        ends[1].close()
        wire._writable()
        wire._readable()  # both were ready in the same turn of the loop
        wire.close()

    asyncio.run(talk())
    assert ended == [True]


def test_wire_without_news_passes_nothing_on() -> None:
    found: list[object] = []

    async def talk() -> None:
        ends = channel_pair()
        wire = Wire(ends[0], lambda records, descriptors: found.append(records), lambda: None)
        wire._readable()  # the socket was readable for another reason
        wire.close()
        ends[1].close()

    asyncio.run(talk())
    assert found == []


def test_other_ancillary_data_brings_no_descriptor(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    here.send([Cancel(7)])
    assert there.receive() == ([Cancel(7)], [])


def failure_of(nbytes: int) -> Failure:
    """A record of so many bytes."""
    rest = len(_encode(Failure(1, RunFailed("x" * 300)))) - 300
    return Failure(1, RunFailed("x" * (nbytes - rest)))


@pytest.mark.parametrize(("last", "packets_sent"), [(1024, [32]), (1025, [31, 1])])
def test_packet_is_filled_to_its_last_byte(ends: tuple[Channel, Channel], last: int, packets_sent: list[int]) -> None:
    here, there = ends
    for _ in range(2):
        here.send([*[failure_of(1024)] * 31, failure_of(last)])
        assert [len(records) for records, _ in packets(there)] == packets_sent
    here.send([failure_of(1024)] * 96)
    assert [len(records) for records, _ in packets(there)] == [32, 32, 32]


@pytest.mark.parametrize(("sent", "packets_sent"), [(64, [64]), (65, [64, 1]), (129, [64, 64, 1])])
def test_packet_carries_at_most_64_descriptors(
    ends: tuple[Channel, Channel], file: int, sent: int, packets_sent: list[int]
) -> None:
    here, there = ends
    here.send([TableFile(1)] * sent, [file] * sent)
    found = packets(there)
    for _, descriptors in found:
        for descriptor in descriptors:
            os.close(descriptor)
    assert [len(records) for records, _ in found] == packets_sent
    assert [len(descriptors) for _, descriptors in found] == packets_sent


def test_spilled_answers_and_others_share_the_descriptors_of_a_packet(ends: tuple[Channel, Channel], file: int) -> None:
    here, there = ends
    here.send([Cancel(1), spilled(2, 32), Cancel(3), spilled(4, 32), Cancel(5), spilled(6, 1)], [file] * 65)
    found = packets(there)
    for _, descriptors in found:
        for descriptor in descriptors:
            os.close(descriptor)
    assert [(len(records), len(descriptors)) for records, descriptors in found] == [(5, 64), (1, 1)]


def test_closed_channel_has_nothing_waiting() -> None:
    here, there = (Channel(end) for end in channel_pair())
    while not here.waiting:
        here.send([request(number) for number in range(200)])
    here.close()
    there.close()
    assert not here.waiting


def test_loop_watches_a_wire_only_while_it_is_open_and_has_records_waiting() -> None:
    async def talk() -> None:
        loop = asyncio.get_running_loop()
        mine, other = channel_pair()
        there = Channel(other)
        descriptor = mine.fileno()
        wire = Wire(mine, lambda records, descriptors: None, lambda: None)
        wire.send([Cancel(1)])
        assert not loop.remove_writer(descriptor)  # it has left at once
        wire.send([request(number) for number in range(5000)])
        while wire._channel.waiting:
            packets(there)
            wire._writable()
        assert not loop.remove_writer(descriptor)
        wire.send([request(number) for number in range(5000)])
        wire.close()
        assert not loop.remove_writer(descriptor)
        assert not loop.remove_reader(descriptor)
        there.close()

    asyncio.run(talk())
