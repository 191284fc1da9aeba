"""Servers that the tests of the service share: real processes on small networks, and one with known answers."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from convoy.service import cli
from convoy.service.client.client import Client
from tests.service import networks
from tests.service.fake_vision import FakeVision, serving
from tests.service.running import Server, skip_without


def fill(repository: Path, *, slow: bool = True) -> Path:
    """A repository with the small networks."""
    networks.save(networks.classifier(), repository, "letters")
    networks.save(networks.segmenter(), repository, "colours")
    networks.save(networks.waves(), repository, "waves")
    networks.save(networks.doubler(), repository, "doubler")
    networks.save(networks.doubler(batched=False), repository, "triple")
    networks.save(networks.compressor(), repository, "compressor")
    if slow:
        networks.save(networks.slow(), repository, "slow")
    return repository


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small networks; nobody changes them."""
    return fill(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def quick_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small networks without `slow`, for which each server that starts computes for a second."""
    return fill(tmp_path_factory.mktemp("quick"), slow=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    choices = ["auto", "nghttp2", "grpcio"]
    parser.addoption("--transport", choices=choices, default="auto", help="what speaks gRPC in all tests of the server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that are marked `both_transports` run over each; all others over the one that a server chooses."""
    if metafunc.definition.get_closest_marker("both_transports") is not None:
        metafunc.parametrize("transport", ["nghttp2", "grpcio"], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """The transport of the servers that start while the test runs."""
    chosen = getattr(request, "param", request.config.getoption("transport", "auto"))
    skip_without(chosen)
    before, Server.transport = Server.transport, chosen
    yield Server.transport
    Server.transport = before


@pytest.fixture(scope="module")
def small(small_repository: Path, transport: str) -> Iterator[Server]:
    """A server with two front ends on the small networks, for tests that leave it as it was."""
    with Server(small_repository, ["server.frontends=2", "server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture
def client(small: Server) -> Iterator[Client]:
    with Client(small.grpc) as client:
        yield client


@pytest.fixture
def channel(small: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(small.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture
def convoy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`convoy` run in this process, as on a plain terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run


@pytest.fixture
def fake_vision() -> FakeVision:
    return FakeVision()


@pytest.fixture
def vision_target(fake_vision: FakeVision) -> Iterator[str]:
    with serving(fake_vision) as target:
        yield target
