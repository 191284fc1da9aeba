"""The records that front ends and the engines exchange, and the socket pair that carries them.

A `Request` contains the locations of its inputs and outputs in a front end's memory. The engine ends every one with
exactly one `Answer` or `Failure`. Until then the memory stays allocated, even after a cancellation. Records are msgpack
arrays, many per packet. Pixels never go through the socket.
"""

import array
import asyncio
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from convoy.service.errors import (
    BadTensor,
    ConvoyError,
    DeadlinePassed,
    EngineDied,
    ModelUnavailable,
    PredictedLate,
    QueueFull,
    RunFailed,
    UnknownModel,
)
from convoy.service.ipc.slots import SPILLED, Span

FAILED = "the network failed on this input"
DEADLY = "the engine died on this input, or hung: the input is refused for some time"


class Cancelled(ConvoyError):
    """The engine has dropped an image after its cancellation."""

    reason = "CANCELLED"


# The errors that an engine may return. Any other error is sent as RunFailed.
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


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Front end to engine, the first record: the front end's memory. One descriptor travels with it."""

    arena_bytes: int


class Request(msgspec.Struct, array_like=True, tag=1):
    """Front end to engine: `rows` images or tensors to run, whose inputs lie side by side in the front end's memory.

    The same object waits in the engine's queue. Points in time are seconds of CLOCK_MONOTONIC, the same in every
    process.
    """

    id: int  # never reused by a front end
    source: int  # the front end; set by the engine that receives the request
    rows: int
    arrived: float  # when it was ready to be queued
    deadline: float = math.inf  # it never runs if it would end after this
    low_priority: bool = False
    model: str = ""
    version: int = 0
    inputs: tuple[Span, ...] = ()
    outputs: tuple[Span, ...] = ()
    image: tuple[int, int] = (0, 0)  # (height, width) of each image in the input, pixels; zeros for tensors
    apart: bool = False  # a row that fails leaves the others alone
    following: int = 0  # images of this model that the front end has accepted but not yet sent
    in_flight: int = 1  # requests of this model that the front end has not yet answered, including this one
    mark: int = -1  # where the engine marks that it runs; see Arena.claim; -1: nowhere
    alone: bool = False  # it runs with nothing beside it, and its rows one by one if they are `apart`
    skip: tuple[int, ...] = ()  # rows that do not run, because they end the engine
    memory: Any = None  # the front end's SharedMemory; set by the engine that receives the request


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Front end to engine: a cancellation. The engine still ends the request with an Answer or a Failure."""

    id: int


class Release(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Front end to engine: no request of this front end refers to this version, and none will."""

    model: str
    version: int


class Times(NamedTuple):
    """Start and end times of a batch's stages: seconds of CLOCK_MONOTONIC, the same clock in every process."""

    gather: float
    run: float
    scatter: float
    done: float


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Engine to front end: the request has run, and its outputs are written."""

    id: int
    batch_size: int
    times: Times
    outputs: tuple[Span, ...]
    failed: tuple[int, ...] = ()  # rows on which the network failed; their outputs are invalid
    skipped: tuple[int, ...] = ()  # rows that did not run, as the request wanted; likewise

    def errors(self) -> dict[int, RunFailed]:
        """Returns the error of each row that has no outputs."""
        if not self.failed and not self.skipped:
            return {}
        return dict.fromkeys(self.failed, RunFailed(FAILED)) | dict.fromkeys(self.skipped, EngineDied(DEADLY))


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Engine to front end: the request did not run, or its run failed."""

    id: int
    error: ConvoyError


class TableFile(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Engine to front end: the current table of the repository, as JSON in the memory file that travels with it."""

    nbytes: int


Record = Hello | Request | Cancel | Release | Answer | Failure | TableFile

_MAX_PACKET = 32_768  # bytes; a whole packet must fit into the socket's buffer
_MAX_RECORD = 65_536  # bytes; the largest has 2 x 255 tensors
_MAX_DESCRIPTORS = 64  # per packet
_ANCILLARY = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
_MAX_MESSAGE = 1_024  # bytes of a failure's text
_FAILURE_BY_NAME = {kind.__name__: kind for kind in FAILURES}


class Channel:
    """One end of a SOCK_SEQPACKET pair: sends many records per packet and never blocks.

    Packets that the socket does not accept yet are queued here. While `waiting`, the caller must call `flush` when the
    socket becomes writable.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._packets: deque[tuple[bytes, list[int]]] = deque()
        self._received = bytearray(_MAX_PACKET + _MAX_RECORD)

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
            part = _encode(record)
            needs = _descriptors_of(record)
            if parts and (size + len(part) > _MAX_PACKET or len(carried) + needs > _MAX_DESCRIPTORS):
                self._packets.append((_packed(parts), carried))
                parts, carried, size = [], [], 0
            parts.append(part)
            carried.extend(os.dup(own.popleft()) for _ in range(needs))
            size += len(part)
        if parts:
            self._packets.append((_packed(parts), carried))
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

    def receive(self) -> tuple[list[Record], list[int]] | None:
        """Returns one packet's records and descriptors, in order, or None if none is ready. The caller owns the
        descriptors. Raises ConnectionError if the other side has closed."""
        try:
            size, ancillary, _, _ = self.socket.recvmsg_into([self._received], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if not size:
            raise ConnectionError("the other side closed the channel")
        return _decode(memoryview(self._received)[:size]), descriptors.tolist()

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
        self,
        connection: socket.socket,
        on_packet: Callable[[list[Record], list[int]], None],
        on_close: Callable[[], None],
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
            # One packet: usually there is no other, and the loop calls again for the next.
            if self._open and (packet := self._channel.receive()):
                self._on_packet(*packet)
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
            return sum([span.offset == SPILLED for span in record.outputs])
    return 0


def _error_to_fields(error: ConvoyError) -> tuple[str, str, float | None]:
    kind = type(error) if type(error) in FAILURES else RunFailed
    text = error.message.encode()[:_MAX_MESSAGE].decode(errors="ignore")
    return kind.__name__, text, error.retry_after


def _error_of_fields(kind: type, fields: tuple[str, str, float | None]) -> ConvoyError:
    name, message, retry_after = fields
    return _FAILURE_BY_NAME[name](message, retry_after=retry_after)


_encode = msgspec.msgpack.Encoder(enc_hook=_error_to_fields).encode
_decode = msgspec.msgpack.Decoder(list[Record], dec_hook=_error_of_fields).decode


def _packed(records: Sequence[bytes]) -> bytes:
    """Returns encoded records as one msgpack array."""
    return b"".join([b"\xdc" + len(records).to_bytes(2, "big"), *records])
