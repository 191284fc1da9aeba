"""The only table from errors to gRPC status, and the machine-readable details sent with it."""

import math
from enum import IntEnum
from functools import cache

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from convoy.service.errors import (
    BadImage,
    BadRequest,
    BadTensor,
    ConvoyError,
    DeadlinePassed,
    EngineDied,
    ModelUnavailable,
    NotOffered,
    NotPermitted,
    PredictedLate,
    QueueFull,
    QuotaExceeded,
    RunFailed,
    UnknownCaller,
    UnknownModel,
    UnknownRegion,
    UnknownService,
)
from convoy.service.ipc.channel import Cancelled
from convoy.service.pb.convoy.v1 import vision_pb2 as pb


class Code(IntEnum):
    """The gRPC status codes (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS: dict[type[ConvoyError], Code] = {
    BadRequest: Code.INVALID_ARGUMENT,  # fix the request
    BadImage: Code.INVALID_ARGUMENT,
    BadTensor: Code.INVALID_ARGUMENT,
    UnknownModel: Code.NOT_FOUND,  # name one that the server lists
    UnknownRegion: Code.NOT_FOUND,
    UnknownService: Code.NOT_FOUND,
    NotOffered: Code.UNIMPLEMENTED,  # use what the message names
    UnknownCaller: Code.UNAUTHENTICATED,  # send a valid token
    NotPermitted: Code.PERMISSION_DENIED,  # ask whoever runs the server
    QueueFull: Code.RESOURCE_EXHAUSTED,  # back off
    QuotaExceeded: Code.RESOURCE_EXHAUSTED,
    PredictedLate: Code.RESOURCE_EXHAUSTED,
    DeadlinePassed: Code.DEADLINE_EXCEEDED,  # allow more time, or send less at a time
    ModelUnavailable: Code.UNAVAILABLE,  # loading or draining: try another replica
    RunFailed: Code.INTERNAL,  # look into the server's log
    EngineDied: Code.INTERNAL,
    Cancelled: Code.CANCELLED,
}
# Bytes of a message on the wire. The trailers contain it twice, and clients accept 8 kB of them, some only 4.
_MOST_ON_THE_WIRE = 1500
DOMAIN = "convoy"  # of ErrorInfo: the namespace of the reasons


def code_of(error: ConvoyError) -> Code:
    """Returns the gRPC status of an error."""
    return STATUS.get(type(error), Code.INTERNAL)


def message_of(error: ConvoyError) -> str:
    """Returns the message, or the beginning of one that is too long for a header."""
    if 3 * len(error.message.encode(errors="replace")) <= _MOST_ON_THE_WIRE:
        return error.message  # short enough, however it is written
    size = 0
    for place, character in enumerate(error.message):
        data = character.encode(errors="replace")
        size += sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in data)  # gRPC writes others as %XX
        if size > _MOST_ON_THE_WIRE:
            return error.message[: max(0, place - 3)] + "..."
    return error.message


def trailers(error: ConvoyError) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the trailing metadata: google.rpc.Status with ErrorInfo, and RetryInfo if a retry makes sense."""
    details = [_error_info(error.reason)]
    pairs: list[tuple[str, str | bytes]] = []
    if error.retry_after is not None:
        milliseconds = math.ceil(error.retry_after * 1000)
        delay = Duration()
        delay.FromMilliseconds(milliseconds)
        details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
        pairs.append(("grpc-retry-pushback-ms", str(milliseconds)))
    status = Status(code=code_of(error), message=message_of(error), details=details)
    return (*pairs, ("grpc-status-details-bin", status.SerializeToString()))


def request_error(error: ConvoyError) -> pb.RequestError:
    """Returns the same as a message: why one request of a stream was not served."""
    return pb.RequestError(
        code=code_of(error),
        reason=error.reason,
        message=message_of(error),
        retry_after_seconds=error.retry_after or 0,
    )


@cache
def _error_info(reason: str) -> Any:
    return _any(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))


def _any(message: Message) -> Any:
    # What Any.Pack does, in a fifth of its time.
    return Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString())
