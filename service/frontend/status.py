"""The one table from errors to gRPC status, with the machine-readable details that travel along."""

import math

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from convoy.service.errors import (
    BadImage,
    BadRequest,
    BadTensor,
    ConvoyError,
    DeadlinePassed,
    EngineDied,
    ModelUnavailable,
    NotOffered,
    PredictedLate,
    QueueFull,
    RunFailed,
    UnknownModel,
)
from convoy.service.ipc.channel import Cancelled
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

STATUS: dict[type[ConvoyError], StatusCode] = {
    BadRequest: StatusCode.INVALID_ARGUMENT,  # fix the request
    BadImage: StatusCode.INVALID_ARGUMENT,
    BadTensor: StatusCode.INVALID_ARGUMENT,
    UnknownModel: StatusCode.NOT_FOUND,
    NotOffered: StatusCode.UNIMPLEMENTED,
    QueueFull: StatusCode.RESOURCE_EXHAUSTED,  # back off
    PredictedLate: StatusCode.RESOURCE_EXHAUSTED,
    DeadlinePassed: StatusCode.DEADLINE_EXCEEDED,
    ModelUnavailable: StatusCode.UNAVAILABLE,  # loading or draining: try another replica
    RunFailed: StatusCode.INTERNAL,
    EngineDied: StatusCode.INTERNAL,
    Cancelled: StatusCode.CANCELLED,
}
# Bytes of a message on the wire. It travels in the trailers twice, and clients take 8 kB of those, some only 4.
_MOST_ON_THE_WIRE = 1500
DOMAIN = "convoy"  # of ErrorInfo: who gives the reasons their meaning


def code_of(error: ConvoyError) -> StatusCode:
    """The gRPC status of an error."""
    return STATUS.get(type(error), StatusCode.INTERNAL)


def number_of(error: ConvoyError) -> int:
    """The same as google.rpc.Code."""
    number: int = code_of(error).value[0]
    return number


def message_of(error: ConvoyError) -> str:
    """The message, or the beginning of one that is too long for a header."""
    size = 0
    for place, character in enumerate(error.message):
        data = character.encode(errors="replace")
        size += sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in data)  # gRPC writes others as %XX
        if size > _MOST_ON_THE_WIRE:
            return error.message[: max(0, place - 3)] + "..."
    return error.message


def trailers(error: ConvoyError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata: google.rpc.Status with ErrorInfo, and RetryInfo where trying again makes sense."""
    details = [_any(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    pairs: list[tuple[str, str | bytes]] = []
    if error.retry_after is not None:
        milliseconds = math.ceil(error.retry_after * 1000)
        delay = Duration()
        delay.FromMilliseconds(milliseconds)
        details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
        pairs.append(("grpc-retry-pushback-ms", str(milliseconds)))
    status = Status(code=number_of(error), message=message_of(error), details=details)
    return (*pairs, ("grpc-status-details-bin", status.SerializeToString()))


def request_error(error: ConvoyError) -> pb.RequestError:
    """The same inside a message: why one request of a stream was not served."""
    return pb.RequestError(
        code=number_of(error),
        reason=error.reason,
        message=message_of(error),
        retry_after_seconds=error.retry_after or 0,
    )


def _any(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
