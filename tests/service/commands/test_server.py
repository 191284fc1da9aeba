"""`convoy health` and `convoy models` against real gRPC servers."""

import io
import json
import os
import socket
import subprocess
import sys
import time
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
from rich.console import Console
from typer.testing import CliRunner

from convoy.service.client.client import Client
from convoy.service.commands.server import check, health, local_target, show_models
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
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


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this process have all the time to answer."""
    monkeypatch.setattr("convoy.service.commands.server.PROBE_DEADLINE", 60.0)


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
    monkeypatch.setattr("convoy.service.commands.server.PROBE_DEADLINE", 0.2)
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
    assert local_target(processes.announced([tmp_path])) == "127.0.0.1:8001"
    announce(tmp_path, "dead", 2**22 + 1, "127.0.0.1:1")
    announce(tmp_path, "garbled", 1, "")
    announce(tmp_path, "lives", os.getpid(), "0.0.0.0:9001")
    assert local_target(processes.announced([tmp_path])) == "127.0.0.1:9001"
    announce(tmp_path, "second", os.getpid(), "[::1]:9002")
    assert sorted(processes.announced([tmp_path])) == ["127.0.0.1:9001", "[::1]:9002"]
    assert local_target(processes.announced([tmp_path])) == "127.0.0.1:8001"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_health_finds_the_server_on_any_port_and_host(quick_repository: Path, tmp_path: Path, host: str) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    with Server(quick_repository, [f"server.host={host}", "server.lame_duck_seconds=0"], environment=environment):
        for _ in range(5):  # on a busy machine the server may need longer than a probe waits
            asked = subprocess.run(
                [str(Path(sys.executable).with_name("convoy")), "health"],
                env=os.environ | environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.stdout != "DEADLINE_EXCEEDED\n":
                break
    assert (asked.returncode, asked.stdout) == (0, "SERVING\n"), asked.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_table_has_a_row_for_each_version_and_the_reason_below(vision_target, width):
    file = io.StringIO()
    with Client(vision_target) as client:
        show_models(Console(file=file, width=width), client.models())
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert lines[1][:9] == ["digits", "3", "ready", "classify", "CPU", "32×32", "L", "10", "top1"]
    pets = next(line for line in lines if line[0] == "pets")
    assert pets == ["pets", "2", "ready", "segment", "CPU", "any", "size", "RGB", "3"]
    assert lines[-2] == ["broken", "1", "unavailable"]
    assert lines[-1] == ["broken", "1:", "model.onnx", "is", "cut", "short"]


@pytest.mark.parametrize("width", [20, 60, 200])
def test_nothing_is_cut_off_however_narrow_the_terminal_is(vision_target, fake_vision, width):
    name, reason = "a-model-with-a-long-name", "a reason " * 20
    fake_vision.models = [pb.ModelInfo(model=name, version=1, metrics={"pixel_accuracy": 0.5, "mean_iou": 0.25})]
    fake_vision.models += [pb.ModelInfo(model=name, version=2, reason=reason)]
    file = io.StringIO()
    with Client(vision_target) as client:
        show_models(Console(file=file, width=width), client.models())
    lines = file.getvalue().splitlines()
    assert [line.split() for line in lines[1:3]] == [
        [name, "1", "unspecified", "mean_iou", "0.25,", "pixel_accuracy", "0.5"],
        [name, "2", "unspecified"],
    ]
    assert lines[3] == f"{name} 2: {reason}"


def test_model_of_tensors_tells_their_sides(vision_target, fake_vision):
    axes = [pb.TensorAxis(name="channel", size=3), pb.TensorAxis(name="time", spacing=0.01, unit="s")]
    tensor = pb.TensorInput(name="waveform", datatype="FP32", axes=axes)
    fake_vision.models = [pb.ModelInfo(model="gait", version=1, task=pb.TASK_CLASSIFICATION, tensor=tensor)]
    file = io.StringIO()
    with Client(vision_target) as client:
        show_models(Console(file=file, width=80), client.models())
    assert "infer  " in file.getvalue()
    assert "[3, time] FP32" in file.getvalue()


def test_command_prints_the_table(convoy, vision_target):
    done = convoy("models", "--server", vision_target)
    assert (done.returncode, done.stderr, "digits" in done.stdout) == (0, "", True)


def test_json_says_everything(convoy, vision_target):
    digits, pets, broken = json.loads(convoy("models", "--json", "--server", vision_target).stdout)
    assert (digits["input"]["fit"], digits["metrics"]) == ("letterbox", {"top1": 0.9912})
    assert pets["palette"] == [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    assert (broken["state"], broken["reason"]) == ("unavailable", "model.onnx is cut short")


def test_empty_repository_is_said(convoy, vision_target, fake_vision):
    fake_vision.models = []
    assert "contains no model" in convoy("models", "--server", vision_target).stdout


def test_absent_server_is_one_line_and_exit_code_2(convoy):
    done = convoy("models", "--server", "127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "127.0.0.1:1" in done.stderr


def test_server_whose_standard_streams_are_closed_serves(quick_repository: Path, tmp_path: Path) -> None:
    """Its sockets get other numbers than these, so that nothing is written to them by mistake."""
    command = [str(Path(sys.executable).with_name("convoy")), "serve", "--repository", str(quick_repository)]
    ports = [option for name in ("grpc", "http", "metrics") for option in (f"--{name}-port", "0")]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command, *ports, "--set", "server.lame_duck_seconds=0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(shell, env=environment)
    try:
        until = time.monotonic() + 180  # on a busy machine, a start takes a minute
        while not (addresses := processes.announced([tmp_path])) and time.monotonic() < until:
            time.sleep(0.05)
        with grpc.insecure_channel(addresses[0]) as channel:
            serving = channel.unary_unary("/grpc.health.v1.Health/Check")
            while (status := serving(b"", wait_for_ready=True, timeout=60)) != b"\x08\x01":
                assert time.monotonic() < until, status
                time.sleep(0.05)
        standard = [str(Path(f"/proc/{process.pid}/fd/{descriptor}").readlink()) for descriptor in (0, 1, 2)]
        assert standard == [os.devnull] * 3
    finally:
        process.terminate()
    assert process.wait(60) == 0
