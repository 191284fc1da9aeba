"""The records that front ends and the engine exchange, and the socket pair that carries them.

A `Submit` contains the locations of the inputs and outputs in a front end's memory. The engine ends every `Submit` with
exactly one `Answer` or `Failure`. Until then the memory stays allocated, even after a cancellation. Records are fixed
structs, many per packet. Pixels never go through the socket.
"""

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from convoy.service.dtypes import DTYPES
from convoy.service.errors import (
    BadTensor,
    ConvoyError,
    DeadlinePassed,
    ModelUnavailable,
    PredictedLate,
    QueueFull,
    RunFailed,
    UnknownModel,
)
from convoy.service.ipc.slots import MAX_RANK, SPILLED, Span

NEVER = (1 << 63) - 1  # ns; stands for no deadline
FAILED = "the network failed on this input"

_DTYPE_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}


class Cancelled(ConvoyError):
    """The engine has dropped an image after its cancellation."""

    reason = "CANCELLED"


# The errors that an engine may return, by their number in a record. Any other error is sent as RunFailed.
FAILURES: tuple[type[ConvoyError], ...] = (
    RunFailed,
    QueueFull,
    PredictedLate,
    DeadlinePassed,
    UnknownModel,
    ModelUnavailable,
    BadTensor,
    Cancelled,
)


class Hello(NamedTuple):
    """Front end to engine, the first record: the front end's memory. One descriptor travels with it."""

    arena_bytes: int


class Submit(NamedTuple):
    """Front end to engine: a request to run `rows` images, whose inputs lie side by side in the arena."""

    id: int  # never reused by a front end
    model: str
    version: int
    rows: int
    following: int  # images of this model that the front end has accepted but not yet submitted
    company: int  # requests of this model that the front end has accepted but not yet answered, including this one
    arrived: int  # CLOCK_MONOTONIC, ns: time when it was ready to be queued
    deadline: int  # CLOCK_MONOTONIC, ns, or NEVER
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]
    image: tuple[int, int] = (0, 0)  # (height, width) of each image in the input, pixels; zeros for tensors
    low_priority: bool = False


class Cancel(NamedTuple):
    """Front end to engine: a cancellation. The engine still ends the request with an Answer or a Failure."""

    id: int


class Release(NamedTuple):
    """Front end to engine: no request of this front end refers to this version, and none will."""

    model: str
    version: int


class Times(NamedTuple):
    """Start and end times of a batch's stages: CLOCK_MONOTONIC, ns, the same clock in every process."""

    gather: int
    run: int
    scatter: int
    done: int


class Answer(NamedTuple):
    """Engine to front end: the request has run, and its outputs are written."""

    id: int
    batch_size: int
    times: Times
    outputs: tuple[Span, ...]
    failed: tuple[int, ...] = ()  # rows on which the network failed; their outputs are invalid


class Failure(NamedTuple):
    """Engine to front end: the request did not run, or its run failed."""

    id: int
    error: ConvoyError


class TableFile(NamedTuple):
    """Engine to front end: the current table of the repository, as JSON in the memory file that travels with it."""

    nbytes: int


Record = Hello | Submit | Cancel | Release | Answer | Failure | TableFile

_NUMBERS = {kind: number for number, kind in enumerate(FAILURES)}

_HELLO = struct.Struct("<B7xQ")
_SUBMIT = struct.Struct("<BBB?IIIQqqq64sII")
_CANCEL = struct.Struct("<B7xQ")
_RELEASE = struct.Struct("<B7xq64s")
_ANSWER = struct.Struct("<BBHIQ4q")
_FAILURE = struct.Struct("<BBHxxxxQd")
_TABLE = struct.Struct("<B7xQ")
_SPAN = struct.Struct("<BBB5xQQ8q")


class _Kind(IntEnum):
    HELLO = 0
    SUBMIT = 1
    CANCEL = 2
    RELEASE = 3
    ANSWER = 4
    FAILURE = 5
    TABLE = 6


_MAX_PACKET = 32_768  # bytes; a whole packet must fit into the socket's buffer
_MAX_RECORD = _SUBMIT.size + 2 * 255 * _SPAN.size
_MAX_DESCRIPTORS = 64  # per packet
_ANCILLARY = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
_MAX_MESSAGE = 1_024  # bytes of a failure's text


@dataclass(frozen=True, slots=True)
class Packet:
    """The records of one read, and their descriptors, in order. The reader owns the descriptors."""

    records: Sequence[Record]
    descriptors: Sequence[int]


class Channel:
    """One end of a SOCK_SEQPACKET pair: sends many records per packet and never blocks.

    Packets that the socket does not accept yet are queued here. While `waiting`, the caller must call `flush` when the
    socket becomes writable.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._packets: deque[tuple[bytes, list[int]]] = deque()

    @property
    def waiting(self) -> bool:
        return bool(self._packets)

    def send(self, records: Iterable[Record], descriptors: Sequence[int] = ()) -> None:
        """Packs and sends the records. Duplicates the `descriptors`; the caller still owns the originals.

        Raises ConnectionError if the other side has closed.
        """
        # Descriptors travel in the order of their records; the kernel limits their number per packet.
        own = deque(descriptors)
        parts: list[bytes] = []
        carried: list[int] = []
        size = 0
        for record in records:
            part = _pack(record)
            needs = _descriptors_of(record)
            if parts and (size + len(part) > _MAX_PACKET or len(carried) + needs > _MAX_DESCRIPTORS):
                self._packets.append((b"".join(parts), carried))
                parts, carried, size = [], [], 0
            parts.append(part)
            carried.extend(os.dup(own.popleft()) for _ in range(needs))
            size += len(part)
        if parts:
            self._packets.append((b"".join(parts), carried))
        self.flush()

    def flush(self) -> None:
        """Sends queued packets until the socket accepts no more. Raises ConnectionError."""
        while self._packets:
            data, descriptors = self._packets[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                self.socket.sendmsg([data], ancillary)
            except BlockingIOError:
                return
            self._packets.popleft()
            for descriptor in descriptors:
                os.close(descriptor)

    def receive(self) -> Packet | None:
        """Returns one packet, or None if none is ready. Raises ConnectionError if the other side has closed."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(_MAX_PACKET + _MAX_RECORD, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if not data:
            raise ConnectionError("the other side closed the channel")
        return Packet(_unpack(data), descriptors.tolist())

    def close(self) -> None:
        """Closes the socket and drops queued packets."""
        for _, descriptors in self._packets:
            for descriptor in descriptors:
                os.close(descriptor)
        self._packets.clear()
        self.socket.close()


class Wire:
    """A Channel on the event loop: passes every packet to `on_packet`, and calls `on_close` once, when it closes."""

    def __init__(
        self, connection: socket.socket, on_packet: Callable[[Packet], None], on_close: Callable[[], None]
    ) -> None:
        self._channel = Channel(connection)
        self._on_packet = on_packet
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(connection, self._readable)

    def send(self, records: Iterable[Record], descriptors: Sequence[int] = ()) -> None:
        """Sends the records now or as soon as the socket accepts them. Drops them if the wire has closed."""
        if not self._open:
            return
        try:
            self._channel.send(records, descriptors)
        except ConnectionError:
            self.close()
            return
        if self._channel.waiting:
            self._loop.add_writer(self._channel.socket, self._writable)

    def close(self) -> None:
        """Closes the channel and calls `on_close`."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._channel.socket)
            self._loop.remove_writer(self._channel.socket)
            self._channel.close()
            self._on_close()

    def _readable(self) -> None:
        try:
            while self._open and (packet := self._channel.receive()):
                self._on_packet(packet)
        except ConnectionError:
            self.close()

    def _writable(self) -> None:
        try:
            self._channel.flush()
        except ConnectionError:
            self.close()
            return
        if not self._channel.waiting:
            self._loop.remove_writer(self._channel.socket)


def _descriptors_of(record: Record) -> int:
    match record:
        case Hello() | TableFile():
            return 1
        case Answer():
            return sum(span.offset == SPILLED for span in record.outputs)
    return 0


def _pack(record: Record) -> bytes:
    match record:
        case Submit(inputs=inputs, outputs=outputs):
            head = _SUBMIT.pack(
                _Kind.SUBMIT,
                len(inputs),
                len(outputs),
                record.low_priority,
                record.rows,
                record.following,
                record.company,
                record.id,
                record.version,
                record.arrived,
                record.deadline,
                record.model.encode(),
                *record.image,
            )
            return head + b"".join(map(_pack_span, inputs)) + b"".join(map(_pack_span, outputs))
        case Answer(outputs=outputs):
            counts = len(outputs), len(record.failed)
            head = _ANSWER.pack(_Kind.ANSWER, *counts, record.batch_size, record.id, *record.times)
            return head + b"".join(map(_pack_span, outputs)) + struct.pack(f"<{len(record.failed)}I", *record.failed)
        case Failure(error=error):
            text = error.message.encode()[:_MAX_MESSAGE]
            number = _NUMBERS.get(type(error), 0)
            retry_after = -1.0 if error.retry_after is None else error.retry_after
            return _FAILURE.pack(_Kind.FAILURE, number, len(text), record.id, retry_after) + text
        case Cancel():
            return _CANCEL.pack(_Kind.CANCEL, record.id)
        case Release():
            return _RELEASE.pack(_Kind.RELEASE, record.version, record.model.encode())
        case Hello():
            return _HELLO.pack(_Kind.HELLO, record.arena_bytes)
        case TableFile():
            return _TABLE.pack(_Kind.TABLE, record.nbytes)


def _pack_span(span: Span) -> bytes:
    shape = span.shape + (0,) * (MAX_RANK - len(span.shape))
    return _SPAN.pack(span.number, _DTYPE_NUMBERS[span.dtype], len(span.shape), span.offset, span.nbytes, *shape)


def _unpack(data: bytes) -> list[Record]:
    records: list[Record] = []
    at = 0
    while at < len(data):
        record, at = _unpack_one(data, at)
        records.append(record)
    return records


def _unpack_one(data: bytes, at: int) -> tuple[Record, int]:
    match data[at]:
        case _Kind.SUBMIT:
            _, inputs, outputs, low, *numbers, model, height, width = _SUBMIT.unpack_from(data, at)
            rows, following, company, id_, version, arrived, deadline = numbers
            spans, end = _unpack_spans(data, at + _SUBMIT.size, inputs + outputs)
            name = model.rstrip(b"\0").decode()
            tensors = (spans[:inputs], spans[inputs:])
            what = (id_, name, version, rows, following, company, arrived, deadline)
            return Submit(*what, *tensors, (height, width), low), end
        case _Kind.ANSWER:
            _, outputs, failures, batch_size, id_, *times = _ANSWER.unpack_from(data, at)
            spans, end = _unpack_spans(data, at + _ANSWER.size, outputs)
            failed = struct.unpack_from(f"<{failures}I", data, end)
            return Answer(id_, batch_size, Times(*times), spans, failed), end + 4 * failures
        case _Kind.FAILURE:
            _, number, length, id_, retry_after = _FAILURE.unpack_from(data, at)
            start = at + _FAILURE.size
            text = data[start : start + length].decode(errors="replace")
            error = FAILURES[number](text, retry_after=None if retry_after < 0 else retry_after)
            return Failure(id_, error), start + length
        case _Kind.CANCEL:
            return Cancel(_CANCEL.unpack_from(data, at)[1]), at + _CANCEL.size
        case _Kind.RELEASE:
            _, version, model = _RELEASE.unpack_from(data, at)
            return Release(model.rstrip(b"\0").decode(), version), at + _RELEASE.size
        case _Kind.HELLO:
            return Hello(_HELLO.unpack_from(data, at)[1]), at + _HELLO.size
        case _Kind.TABLE:
            return TableFile(_TABLE.unpack_from(data, at)[1]), at + _TABLE.size
        case kind:
            raise AssertionError(f"record of kind {kind} in a packet")


def _unpack_spans(data: bytes, at: int, count: int) -> tuple[tuple[Span, ...], int]:
    end = at + count * _SPAN.size
    return _spans(data[at:end]), end


@lru_cache(maxsize=4096)
def _spans(data: bytes) -> tuple[Span, ...]:
    # Cached, because slots are reused at the same offsets.
    return tuple(
        Span(number, offset, nbytes, DTYPES[dtype], tuple(shape[:rank]))
        for number, dtype, rank, offset, nbytes, *shape in _SPAN.iter_unpack(data)
    )
