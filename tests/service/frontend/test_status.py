"""Every error has its gRPC status and its machine-readable reason."""

from urllib.parse import quote

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from convoy.service import errors
from convoy.service.errors import BadConfig, BadImage, BadMetadata, BadModelFile, ConvoyError, QueueFull, listed, named
from convoy.service.frontend.status import STATUS, Code, code_of, message_of, trailers
from convoy.service.ipc import channel

KINDS = [
    kind
    for module in (errors, channel)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, ConvoyError) and kind.__module__ == module.__name__
]
# What no caller can do anything about, and no request should run into.
OURS = {ConvoyError, BadConfig, BadMetadata, BadModelFile}


def details(error: ConvoyError) -> tuple[status_pb2.Status, dict[str, str | bytes]]:
    pairs = dict(trailers(error))
    data = pairs["grpc-status-details-bin"]
    assert isinstance(data, bytes)
    return status_pb2.Status.FromString(data), pairs


def packed(message: Message) -> AnyMessage:
    into = AnyMessage()
    into.Pack(message)
    return into


def test_every_error_has_a_row_or_is_ours() -> None:
    assert len(KINDS) > 10
    assert set(STATUS) | OURS == set(KINDS)
    assert not set(STATUS) & OURS


@pytest.mark.parametrize("kind", sorted(OURS, key=lambda kind: kind.__name__))
def test_ours_are_internal(kind: type[ConvoyError]) -> None:
    assert code_of(kind("what")) is Code.INTERNAL
    assert code_of(kind("what")) == code_pb2.INTERNAL


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("BadRequest", "INVALID_ARGUMENT"),
        ("BadImage", "INVALID_ARGUMENT"),
        ("BadTensor", "INVALID_ARGUMENT"),
        ("UnknownModel", "NOT_FOUND"),
        ("UnknownRegion", "NOT_FOUND"),
        ("NotOffered", "UNIMPLEMENTED"),
        ("QueueFull", "RESOURCE_EXHAUSTED"),
        ("DeadlinePassed", "DEADLINE_EXCEEDED"),
        ("ModelUnavailable", "UNAVAILABLE"),
        ("RunFailed", "INTERNAL"),
    ],
)
def test_status_of_each_error(kind: str, code: str) -> None:
    error = getattr(errors, kind)("what")
    assert code_of(error).name == code
    assert code_of(error) == code_pb2.Code.Value(code)


def test_reasons_are_one_a_class() -> None:
    assert len({kind.reason for kind in KINDS}) == len(KINDS)


def test_details_carry_reason_message_and_code() -> None:
    status, pairs = details(BadImage("image is 0 bytes, want ≥ 1"))
    assert (status.code, status.message) == (code_pb2.INVALID_ARGUMENT, "image is 0 bytes, want ≥ 1")
    assert list(status.details) == [packed(error_details_pb2.ErrorInfo(reason="BAD_IMAGE", domain="convoy"))]
    assert "grpc-retry-pushback-ms" not in pairs


@pytest.mark.parametrize(("retry_after", "milliseconds"), [(0.25, 250), (0.0101, 11), (10.0, 10_000), (0.0, 0)])
def test_hint_when_to_try_again_travels_along(retry_after: float, milliseconds: int) -> None:
    status, pairs = details(QueueFull("full", retry_after=retry_after))
    delay = Duration()
    delay.FromMilliseconds(milliseconds)
    assert status.details[1] == packed(error_details_pb2.RetryInfo(retry_delay=delay))
    assert pairs["grpc-retry-pushback-ms"] == str(milliseconds)


@pytest.mark.parametrize("letter", ["a", "%", "\n", "\u00e4", "\u732b", "\U0001f408"])
def test_longest_message_fits_the_headers_of_any_client(letter: str) -> None:
    error = BadImage(letter * 70_000)
    message = message_of(error)
    assert message.startswith(letter * 100)
    assert message.endswith("...")
    details = dict(trailers(error))["grpc-status-details-bin"]
    assert len(quote(message)) + len(details) * 4 / 3 < 4000


def test_message_of_usual_length_is_whole() -> None:
    text = "image is \u732b, " + "want 1 to 16777216 " * 60
    assert message_of(BadImage(text)) == text


@pytest.mark.parametrize("letter", ["a", "'", "\u732b"])
@pytest.mark.parametrize("length", [1, 30, 80, 5000])
def test_lists_of_names_are_short_and_say_how_many_are_missing(letter: str, length: int) -> None:
    names = [letter * length for _ in range(1000)]
    text = listed(map(repr, names))
    assert len(text.encode()) + len(named(names[0]).encode()) < 300
    assert text.endswith(" more")
    shown = 1000 - int(text.split(" and ")[1].split()[0])
    assert shown == text.count(", ") + 1
    assert text.startswith(repr(names[0])[:20])


def test_few_names_are_all_listed() -> None:
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed([]) == ""
