"""Quotas of a whole server, over both transports."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import Classification, ServerError
from convoy.service.commands.token import line
from convoy.service.pb import inference_pb2
from tests.service import networks
from tests.service.calls import method, reason, retry_delay
from tests.service.running import Server

pytestmark = pytest.mark.both_transports

SECONDS = 20
IMAGE = np.zeros((4, 4), np.uint8)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), found, "letters")
    return found


def serve(repository: Path, *settings: str) -> Server:
    return Server(repository, [*(f"quotas.{each}" for each in settings), "server.lame_duck_seconds=0"])


@pytest.fixture(scope="module")
def limited(letters: Path, transport: str) -> Iterator[Server]:
    """So slow a rate that nothing comes back while a test runs; each test has callers of its own."""
    names = [f"caller-{number}" for number in range(10)]
    callers = letters.parent / f"callers-{transport}.toml"
    callers.write_text("\n".join(line(name, f"token-{name}", ["*"], [], None) for name in names))
    settings = ["quotas.requests_per_second=0.01", "quotas.burst_seconds=500", f"access.callers={callers}"]
    with Server(letters, [*settings, "server.lame_duck_seconds=0"]) as server:
        yield server


def client(server: Server, name: str) -> Client:
    return Client(server.grpc, credentials=Credentials(token=f"token-{name}"))


def refused(of: Client, times: int) -> list[bool]:
    """Whether each of some calls is refused for the quota."""
    errors = [_error(of) for _ in range(times)]
    for error in filter(None, errors):
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 100
    return [error is not None for error in errors]


def _error(of: Client) -> ServerError | None:
    try:
        of.models(SECONDS)
    except ServerError as error:
        return error
    return None


def test_each_caller_has_its_own_quota(limited: Server) -> None:
    with client(limited, "caller-0") as one, client(limited, "caller-1") as other:
        assert refused(one, 7) == [False] * 5 + [True] * 2
        assert refused(other, 6) == [False] * 5 + [True]
    with client(limited, "caller-0") as again:  # a new connection is no new caller
        assert refused(again, 1) == [True]


def test_health_and_unknown_methods_count_too(limited: Server) -> None:
    header = [("authorization", "Bearer token-caller-2")]
    with grpc.insecure_channel(limited.grpc) as channel:

        def code(path: str) -> str:
            try:
                channel.unary_unary(path)(b"", timeout=SECONDS, metadata=header)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        paths = ["/grpc.health.v1.Health/Check", "/nothing.Nothing/Nothing"] * 3
        codes = [code(path) for path in paths]
        assert codes == ["OK", "UNIMPLEMENTED", "OK", "UNIMPLEMENTED", "OK", "RESOURCE_EXHAUSTED"]


def test_each_request_of_a_stream_counts(limited: Server) -> None:
    with client(limited, "caller-3") as caller:
        results = [result for _, result in caller.classify_stream([IMAGE] * 8, "letters")]
    answered = [result for result in results if isinstance(result, Classification)]
    errors = [result for result in results if isinstance(result, ServerError)]
    assert (len(answered), len(errors)) == (4, 4)  # the call itself is one, too
    assert {error.reason for error in errors} == {"QUOTA_EXCEEDED"}
    assert all(error.retry_after for error in errors)


def test_hint_travels_with_the_refusal(letters: Path, transport: str) -> None:
    with serve(letters, "requests_per_second=0.01") as server, grpc.insecure_channel(server.grpc) as channel:
        live = method(channel, "ServerLive")
        live(inference_pb2.ServerLiveRequest(), timeout=SECONDS)
        with pytest.raises(grpc.RpcError) as caught:
            live(inference_pb2.ServerLiveRequest(), timeout=SECONDS)
        assert reason(caught.value) == "QUOTA_EXCEEDED"
        assert 90 < retry_delay(caught.value) <= 100
        pushback = dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]
        assert int(pushback) == pytest.approx(1000 * retry_delay(caught.value))
        assert server.total("convoy_refusals_total", reason="QUOTA_EXCEEDED") == 1


def test_bytes_are_limited_by_address_where_callers_have_no_names(letters: Path, transport: str) -> None:
    image = np.zeros((200, 200), np.uint8)
    with serve(letters, "bytes_per_second=100") as server, Client(server.grpc) as one, Client(server.grpc) as other:
        assert one.classify(image, "letters", deadline=SECONDS).labels
        for caller in (one, other):
            with pytest.raises(ServerError) as caught:
                caller.classify(IMAGE, "letters", deadline=SECONDS)
            assert caught.value.reason == "QUOTA_EXCEEDED"
            assert caught.value.retry_after is not None
            assert 350 < caught.value.retry_after < 400
