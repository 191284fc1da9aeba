"""`convoy config`: what is in force, where it is from, and a file that gives the same."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.service import machine
from convoy.service.config import Config, keys, load

Convoy = Callable[..., subprocess.CompletedProcess[str]]

SETTINGS = (
    "server.frontends=auto",
    "server.host=0.0.0.0",
    "batching.buckets=[[64, 128], [32, 32]]",
    "batching.latency_objective_ms=12.5",
    "engine.sleep_ms=[5.204, 1.082]",
    "engine.devices=[0, 1]",
    "limits.slot_bytes=1073741824",
    "quotas.bytes_per_second=1e15",
    "repository.versions=[3, 5]",
    "repository.cache='a\"b\\c\x7fü\t日'",
    "admin.enabled=true",
    'access.public=["probes"]',
)


def line_of(text: str, key: str) -> str:
    """The line of a dotted key."""
    section, name = key.split(".")
    lines = text.partition(f"[{section}]")[2].partition("\n[")[0].splitlines()
    (line,) = [line for line in lines if line.removeprefix("# ").split(" ")[0] == name]
    return line


@pytest.mark.parametrize("settings", [(), SETTINGS])
def test_output_is_a_file_that_gives_the_same(convoy: Convoy, settings: tuple[str, ...], tmp_path: Path) -> None:
    done = convoy("config", *(word for setting in settings for word in ("--set", setting)))
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "same.toml").write_text(done.stdout)
    assert load(tmp_path / "same.toml") == load(None, settings)
    assert (load(None, settings) == Config()) == (not settings)


def test_every_setting_is_there_with_its_origin(convoy: Convoy) -> None:
    text = convoy("config").stdout
    assert all("  # default" in line_of(text, key) for key in keys())


def test_origins_are_named(convoy: Convoy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "convoy.toml"
    file.write_text("[server]\ngrpc_port = 1\nhttp_port = 2\nmetrics_port = 3\n")
    monkeypatch.setenv("CONVOY_SERVER__HTTP_PORT", "4")
    monkeypatch.setenv("CONVOY_SERVER__METRICS_PORT", "5")
    text = convoy("config", "--config", file, "--set", "server.metrics_port=6").stdout
    assert line_of(text, "server.grpc_port") == f"grpc_port = 1  # {file}"
    assert line_of(text, "server.http_port") == "http_port = 4  # CONVOY_SERVER__HTTP_PORT"
    assert line_of(text, "server.metrics_port") == "metrics_port = 6  # --set"
    assert line_of(text, "server.host") == 'host = "127.0.0.1"  # default'
    assert line_of(text, "batching.latency_objective_ms") == "# latency_objective_ms is not set  # default"


def test_name_of_a_file_stays_in_its_comment(convoy: Convoy, tmp_path: Path) -> None:
    file = tmp_path / "a\n[server]\ngrpc_port = 9.toml"
    file.write_text("[server]\nhttp_port = 2\n")
    done = convoy("config", "--config", file)
    (tmp_path / "same.toml").write_text(done.stdout)
    assert load(tmp_path / "same.toml") == load(file)


def test_what_stands_for_another_value_is_resolved(convoy: Convoy) -> None:
    text = convoy("config", "--set", "server.frontends=auto").stdout
    front_ends = max(1, min(machine.cores() // 4, 8))
    assert line_of(text, "server.frontends") == f'frontends = "auto"  # --set; here {front_ends}'
    assert line_of(text, "engine.threads") == f"threads = 0  # default; here {machine.cores()}"
    fixed = convoy("config", "--set", "engine.threads=3").stdout
    assert line_of(fixed, "engine.threads") == "threads = 3  # --set"


def test_json_has_value_origin_and_meaning(convoy: Convoy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_SERVER__HOST", "0.0.0.0")
    told = json.loads(convoy("config", "--json").stdout)
    assert told["server"]["host"] == {"value": "0.0.0.0", "from": "CONVOY_SERVER__HOST"}
    assert told["engine"]["threads"] == {"value": 0, "from": "default", "here": machine.cores()}
    assert [f"{section}.{key}" for section, values in told.items() for key in values] == keys()


def test_wrong_configuration_is_exit_code_2(convoy: Convoy) -> None:
    done = convoy("config", "--set", "server.grpc_port=many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convoy config: configuration: server.grpc_port is 'many', want int\n"


def test_it_says_that_it_has_no_secrets(convoy: Convoy) -> None:
    assert "contains no secrets" in convoy("config").stdout
