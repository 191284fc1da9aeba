"""`convoy health` against real gRPC servers."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import pytest
import typer
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from typer.testing import CliRunner

from service.commands.health import check, health

app = typer.Typer()
app.command()(health)


@dataclass(frozen=True)
class Asked:
    address: str
    servicer: HealthServicer


@pytest.fixture
def asked() -> Iterator[Asked]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = HealthServicer()
    add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Asked(f"127.0.0.1:{port}", servicer)
    server.stop(None).wait()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout.strip()


def test_serving_is_exit_code_0(asked: Asked) -> None:
    asked.servicer.set("", HealthCheckResponse.SERVING)
    assert run("--server", asked.address) == (0, "SERVING")


def test_not_serving_is_exit_code_1(asked: Asked) -> None:
    asked.servicer.set("", HealthCheckResponse.NOT_SERVING)
    assert run("--server", asked.address) == (1, "NOT_SERVING")


def test_one_service_is_asked_by_name(asked: Asked) -> None:
    asked.servicer.set("", HealthCheckResponse.SERVING)
    asked.servicer.set("unet", HealthCheckResponse.NOT_SERVING)
    assert run("--server", asked.address, "--service", "unet") == (1, "NOT_SERVING")
    assert run("--server", asked.address, "--service", "lenet5") == (1, "NOT_FOUND")


def test_nobody_listening_is_exit_code_1() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        assert run("--server", f"127.0.0.1:{taken.getsockname()[1]}") == (1, "UNAVAILABLE")


def test_server_that_does_not_speak_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.commands.health.DEADLINE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert check(f"127.0.0.1:{silent.getsockname()[1]}") == "DEADLINE_EXCEEDED"


def test_proxy_of_the_environment_is_not_asked(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert check(asked.address) == "SERVING"
