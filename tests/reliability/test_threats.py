"""Attacks that other servers fell to (docs/threat-model.md), each against a real server: bounded, others go on."""

import gzip
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.reliability import leaks
from tests.reliability.probe import Count
from tests.reliability.siege import Siege
from tests.service.frontend.transport.raw import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    SETTINGS,
    Raw,
    frame,
    message,
    request,
)
from tests.service.running import skip_without

CLASSIFY = "/convoy.v1.Vision/Classify"
MIB = 1 << 20
MOST_GROWTH = 128 * MIB
PIECES = 100_000


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    """A server over libnghttp2, which must be as it was at the end."""
    skip_without("nghttp2")
    count = Count()
    with Siege(count, 0) as siege:
        yield siege
    assert count.tally().failed == 0, "\n".join(count.tally().examples)


def resident(siege: Siege) -> int:
    """Bytes of the front end that are in memory."""
    pages = int(Path(f"/proc/{siege.server.children()['frontend']}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def cpu_seconds(siege: Siege) -> float:
    """Of the front end, since its start."""
    fields = Path(f"/proc/{siege.server.children()['frontend']}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_message_in_pieces_of_one_byte_takes_no_more_memory_than_its_bytes(siege: Siege) -> None:
    memory, busy = resident(siege), cpu_seconds(siege)
    with Raw(siege.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request(CLASSIFY)) + frame(DATA, 0, 1, message(bytes(PIECES))[:5]))
        for _ in range(PIECES // 1000):
            raw.send(frame(DATA, 0, 1, b"\xff") * 1000)
        raw.send(frame(DATA, END_STREAM, 1))
        assert raw.status(1) == "3"  # it is no request
    assert resident(siege) - memory < MOST_GROWTH
    assert cpu_seconds(siege) - busy < 30


def test_headers_in_pieces_of_one_byte_end_the_connection(siege: Siege) -> None:
    memory = resident(siege)
    with Raw(siege.address, source="127.9.9.1") as raw:
        raw.until(SETTINGS)
        raw.send(frame(HEADERS, 0, 1, raw.encoder.encode(request(CLASSIFY))))
        raw.pour(frame(CONTINUATION, 0, 1, b"\x82") * 1000, PIECES // 1000)
        raw.wait_for_end()
    assert resident(siege) - memory < MOST_GROWTH


def test_message_that_inflates_a_thousandfold_is_cut_at_the_limit(siege: Siege) -> None:
    memory = resident(siege)
    bomb = gzip.compress(bytes(128 * MIB), 6)
    assert len(bomb) < 128 * MIB / 1000
    with Raw(siege.address) as raw:
        raw.until(SETTINGS)
        raw.send(raw.headers(1, request(CLASSIFY, ("grpc-encoding", "gzip"))))
        framed = message(bomb, 1)
        for at in range(0, len(framed), 16_384):
            raw.send(frame(DATA, END_STREAM if at + 16_384 >= len(framed) else 0, 1, framed[at : at + 16_384]))
        assert raw.status(1) == "8"
    assert resident(siege) - memory < MOST_GROWTH


def test_length_that_is_only_announced_allocates_nothing(siege: Siege) -> None:
    memory = resident(siege)
    with Raw(siege.address) as raw:
        raw.until(SETTINGS)
        for stream in range(1, 41, 2):
            length = 1 << 30 if stream % 4 == 1 else 60 << 20  # beyond the limit, and within it
            raw.send(raw.headers(stream, request(CLASSIFY)) + frame(DATA, 0, stream, b"\0" + length.to_bytes(4, "big")))
        assert raw.status(37) == "8"
        assert resident(siege) - memory < MOST_GROWTH


def test_nothing_of_the_server_has_a_name_in_shared_memory(siege: Siege) -> None:
    for pid in (*siege.server.processes("frontend"), *siege.server.processes("engine"), siege.server.process.pid):
        assert "/dev/shm/" not in Path(f"/proc/{pid}/maps").read_text()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since they were listed, as a caller's connection is
                target = str(descriptor.readlink())
                assert not target.startswith("/dev/shm/"), target


@pytest.mark.parametrize("name", ["a\nb", '\n{"level":"error"}', "\x1b[2J", "\r\n\0", "\u2028\u2029"])
def test_name_with_control_characters_stays_inside_its_answer_and_its_record(siege: Siege, name: str) -> None:
    with Raw(siege.address) as raw:
        raw.call(1, pb.ClassifyRequest(model=name, images=[pb.Image()]).SerializeToString(), CLASSIFY)
        headers = raw.answer(1)[1]
        assert headers["grpc-status"] == "5"
        assert headers["grpc-message"].isprintable()
        assert not leaks.found(headers["grpc-message"])
