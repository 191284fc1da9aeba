"""`convoy health` against real gRPC servers."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import typer
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from typer.testing import CliRunner

from convoy.service.commands.health import _here, check, health
from convoy.service.supervisor import processes
from tests.service.running import Server

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
    monkeypatch.setattr("convoy.service.commands.health.DEADLINE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert check(f"127.0.0.1:{silent.getsockname()[1]}") == "DEADLINE_EXCEEDED"


def test_proxy_of_the_environment_is_not_asked(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert check(asked.address) == "SERVING"


def announce(folder: Path, name: str, pid: int, address: str) -> None:
    (folder / f"convoy-metrics-{name}").mkdir()
    (folder / f"convoy-metrics-{name}" / "address").write_text(f"{pid} {address}\n")


def test_without_an_address_the_one_server_that_lives_here_is_asked(tmp_path: Path) -> None:
    assert _here(processes.announced([tmp_path])) == "127.0.0.1:8001"
    announce(tmp_path, "dead", 2**22 + 1, "127.0.0.1:1")
    announce(tmp_path, "garbled", 1, "")
    announce(tmp_path, "lives", os.getpid(), "0.0.0.0:9001")
    assert _here(processes.announced([tmp_path])) == "127.0.0.1:9001"
    announce(tmp_path, "second", os.getpid(), "[::1]:9002")
    assert sorted(processes.announced([tmp_path])) == ["127.0.0.1:9001", "[::1]:9002"]
    assert _here(processes.announced([tmp_path])) == "127.0.0.1:8001"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_health_finds_the_server_on_any_port_and_host(small_repository: Path, tmp_path: Path, host: str) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    with Server(small_repository, [f"server.host={host}", "server.lame_duck_seconds=0"], environment=environment):
        asked = subprocess.run(
            [str(Path(sys.executable).with_name("convoy")), "health"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (asked.returncode, asked.stdout) == (0, "SERVING\n"), asked.stderr
