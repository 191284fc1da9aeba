"""The name of a call goes back to its caller, over both transports."""

import grpc
import pytest

from tests.service.frontend.transport.serving import SECONDS

NAMED = [("x-request-id", "4711"), ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]


def ids(pairs: object) -> list[str]:
    """The request ids among headers."""
    return [value for name, value in pairs or () if name == "x-request-id"]  # type: ignore[attr-defined]


def returned(channel: grpc.Channel, path: str, metadata: list[tuple[str, str]]) -> list[str]:
    """The request ids that come with an answer or a refusal, whichever headers they are in."""
    call = channel.unary_unary(path)
    try:
        _, done = call.with_call(b"data", timeout=SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return ids(error.initial_metadata()) or ids(error.trailing_metadata())
    return ids(done.initial_metadata())


@pytest.mark.parametrize("method", ["Echo", "Refuse", "Fail"])
def test_answers_and_refusals_have_the_name_of_their_call(channel: grpc.Channel, method: str) -> None:
    assert returned(channel, f"/test.Test/{method}", NAMED) == ["4711"]
    assert returned(channel, f"/test.Test/{method}", []) == []


def test_streams_have_it_too(channel: grpc.Channel) -> None:
    answers = channel.stream_stream("/test.Test/EchoStream")(iter([b"a", b"b"]), timeout=SECONDS, metadata=NAMED)
    assert [bytes(answer) for answer in answers] == [b"a", b"b"]
    assert ids(answers.initial_metadata()) == ["4711"]
    empty = channel.stream_stream("/test.Test/EchoStream")(iter([]), timeout=SECONDS, metadata=NAMED)
    assert list(empty) == []
    assert (ids(empty.initial_metadata()) or ids(empty.trailing_metadata())) == ["4711"]


def test_name_that_no_log_should_have_does_not_go_back(channel: grpc.Channel) -> None:
    for text in ("a b", "a" * 129):
        assert returned(channel, "/test.Test/Echo", [("x-request-id", text)]) == []
