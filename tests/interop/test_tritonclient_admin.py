"""tritonclient administers a server: models on request, shared memory, the log and traces."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.service import networks
from tests.service.running import Server

ADMINISTER = Path(__file__).with_name("administer.py")
TWICE = [[0.0, 2.0, 4.0, 6.0], [8.0, 10.0, 12.0, 14.0]]


@pytest.fixture(scope="module", params=["nghttp2", "grpcio"])
def told(
    request: pytest.FixtureRequest, tritonclient_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What tritonclient was told, as `administer.py` prints it."""
    repository = tmp_path_factory.mktemp("repository")
    networks.save(networks.doubler(), repository, "doubler")
    networks.save(networks.classifier(), repository, "letters")
    settings = ["admin.enabled=true", "admin.port=0", "admin.shared_memory=true", "server.frontends=2"]
    with Server(repository, [*settings, f"server.transport={request.param}"]) as server:
        done = subprocess.run(
            [tritonclient_python, ADMINISTER, server.admin, server.grpc],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_models_are_unloaded_and_loaded(told: dict[str, Any]) -> None:
    ready = {"doubler": "READY", "letters": "READY"}
    unloaded = {"doubler": "READY", "letters": "UNAVAILABLE unloaded on request"}
    assert told["models"] == [ready, True, unloaded, False, ready, True]


def test_tensors_go_through_shared_memory(told: dict[str, Any]) -> None:
    memory = told["memory"]
    assert memory["y"] == TWICE
    assert memory["total"] == [[6.0], [22.0]]
    assert memory["shape"] == [2, 4]
    assert memory["status"] == {"name": "mine", "key": True, "byte_size": "4096"}
    assert memory["after"] == {}
    assert memory["unregistered"] == ["StatusCode.NOT_FOUND", "region 'mine' is not registered"]


def test_levels_of_the_log_are_set(told: dict[str, Any]) -> None:
    verbose, quiet, read = told["log"]
    assert verbose["log_verbose_level"] == {"uint32_param": 1}
    assert quiet["log_verbose_level"] == {"uint32_param": 0}
    assert quiet["log_info"] == {"bool_param": True}
    assert read == quiet


def test_traces_are_set_for_one_model(told: dict[str, Any]) -> None:
    off = {"trace_level": {"value": ["OFF"]}, "trace_rate": {"value": ["1000"]}}
    on = {"trace_level": {"value": ["TIMESTAMPS"]}, "trace_rate": {"value": ["5"]}}
    assert told["traces"] == [on, off, off]


def test_timeout_and_priority_mean_what_the_client_means(told: dict[str, Any]) -> None:
    assert told["parameters"]["answers"] == [TWICE] * 4
    assert told["parameters"]["late"][0] == "StatusCode.DEADLINE_EXCEEDED"


def test_what_is_offered_is_among_the_extensions(told: dict[str, Any]) -> None:
    wanted = {"model_repository", "system_shared_memory", "logging", "trace", "schedule_policy", "classification"}
    assert set(told["extensions"]) >= wanted


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("load of nobody", "NOT_FOUND", "model 'nobody' is not in the repository"),
        ("load with a configuration", "INVALID_ARGUMENT", "parameter 'config' is not accepted"),
        ("load with a file", "INVALID_ARGUMENT", "is not accepted: models come only from the server's repository"),
        ("file of the log", "INVALID_ARGUMENT", "setting 'log_file' is not accepted"),
        ("file of traces", "INVALID_ARGUMENT", "setting 'trace_file' is not accepted"),
        ("load on the other port", "UNIMPLEMENTED", "on the administration port only"),
        ("region on the other port", "UNIMPLEMENTED", "on the administration port only"),
        ("memory of a GPU", "UNIMPLEMENTED", "shared memory is not offered"),
    ],
)
def test_what_is_refused_says_why(told: dict[str, Any], call: str, status: str, words: str) -> None:
    found, text = told["refused"][call]
    assert found == f"StatusCode.{status}"
    assert words in text
