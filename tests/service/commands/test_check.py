"""`convoy check`: what a start would find out, without a server."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.service import networks

Convoy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def log_of_the_tests() -> Iterator[None]:
    """The command sends the log of its process elsewhere."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one of every mistake."""
    root = tmp_path_factory.mktemp("repository")
    for version in (1, 3):
        networks.save(networks.doubler(), root, "doubler", version)
    networks.save(networks.doubler(), root, "pinned", 1)
    (root / "pinned" / "model.toml").write_text("versions = [1, 7]\nmax_batch_size = 4\n")
    foreign = networks.minded()
    foreign.ClearField("metadata_props")  # with them, it would be trusted
    networks.save(foreign, root, "minded")
    networks.save_bytes(networks.deadly(), root, "deadly")
    networks.save_bytes(b"text", root, "fallback", 2)
    networks.save(networks.doubler(), root, "fallback", 1)
    networks.save(networks.doubler(), root, "mistyped")
    (root / "mistyped" / "model.toml").write_text("max_batch = 4\n")
    (root / "hollow" / "1").mkdir(parents=True)
    (root / "empty").mkdir()
    networks.save(networks.doubler(), root, "Wrong Name")
    return root


@pytest.fixture(scope="module")
def told(repository: Path) -> Mapping[str, Any]:
    """What one check of it prints, and its exit code."""
    command = [Path(sys.executable).with_name("convoy"), "check", repository, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return {"code": done.returncode, **json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("model", "version", "state", "reason"),
    [
        ("doubler", 3, "serves", ""),
        ("doubler", 1, "left out", ""),
        ("pinned", 1, "serves", ""),
        ("minded", 1, "serves", "requests run one at a time: "),
        ("deadly", 1, "fails", "loading it and a first run ended a process with SIGABRT"),
        ("fallback", 2, "fails", "it is no ONNX file"),
        ("fallback", 1, "serves", ""),
        ("mistyped", 1, "fails", "model.toml: configuration: unknown key max_batch"),
        ("hollow", 1, "fails", "model.onnx is missing"),
    ],
)
def test_each_version_has_the_state_that_it_would_have(
    told: Mapping[str, Any], model: str, version: int, state: str, reason: str
) -> None:
    (one,) = [each for each in told["versions"] if (each["model"], each["version"]) == (model, version)]
    assert one["state"] == state
    assert one["reason"].startswith(reason)
    assert bool(one["reason"]) == bool(reason)
    assert bool(one["provider"]) == (state != "fails")


def test_settings_of_a_model_count(told: Mapping[str, Any]) -> None:
    sizes = {each["model"]: each["max_batch_size"] for each in told["versions"] if each["state"] == "serves"}
    assert sizes == {"doubler": 32, "pinned": 4, "minded": 1, "fallback": 32}


def test_what_no_start_would_serve_is_warned_of(told: Mapping[str, Any]) -> None:
    assert told["warnings"] == [
        "folder 'Wrong Name' is ignored: a model's name is 1 to 64 of a-z, 0-9, - and _",
        "model doubler: versions = 'latest 1' leaves out version 1",
        "model empty: its folder is empty, want a version in it, such as 1/model.onnx",
        "model pinned: versions = [1, 7] names version 7, which is not there",
    ]


def test_failure_is_exit_code_1(told: Mapping[str, Any]) -> None:
    assert (told["code"], told["failed"]) == (1, True)


def test_nothing_is_written_into_the_repository(told: Mapping[str, Any], repository: Path) -> None:
    assert told["versions"]
    assert not list(repository.glob("**/profile.json*"))


def test_sound_file_is_exit_code_0_and_its_profile_is_stored_if_asked_for(convoy: Convoy, tmp_path: Path) -> None:
    file = networks.save(networks.classifier(), tmp_path, "letters")
    done = convoy("check", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:3] == ["letters", "1", "serves"]
    assert not file.with_name("profile.json").exists()
    assert convoy("check", "--repository", tmp_path, "--profiles").returncode == 0
    assert file.with_name("profile.json").exists()


def test_file_that_ends_the_process_after_its_trial_fails_alone(tmp_path: Path) -> None:
    """Without a trial, its abort comes where a trial has let it pass."""
    networks.save(networks.doubler(), tmp_path, "before")
    for version in (1, 2):
        networks.save_bytes(networks.deadly(), tmp_path, "deadly", version)
    networks.save(networks.doubler(), tmp_path, "later")
    command = [Path(sys.executable).with_name("convoy"), "check", tmp_path, "--json"]
    done = subprocess.run(
        [*command, "--set", "repository.trial_seconds=0", "--set", 'repository.versions="all"'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    rows = [(each["model"], each["version"], each["state"]) for each in json.loads(done.stdout)["versions"]]
    assert rows == [("before", 1, "serves"), ("deadly", 2, "fails"), ("deadly", 1, "fails"), ("later", 1, "serves")]
    reasons = {each["reason"] for each in json.loads(done.stdout)["versions"] if each["model"] == "deadly"}
    assert reasons == {"loading it ended a process with SIGABRT"}


def test_repository_of_nothing_fails(convoy: Convoy, tmp_path: Path) -> None:
    done = convoy("check", "--repository", tmp_path)
    assert (done.returncode, done.stdout) == (1, "nothing would serve\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to serve"),
        (["nowhere"], "'nowhere' does not exist"),
        (["--repository", "nowhere"], "model repository 'nowhere' is not a directory"),
        ([".", "--set", "server.grpc_prt=1"], "unknown key server.grpc_prt"),
        ([".", "--set", "tls.certificate=no.pem", "--set", "tls.key=no.pem"], "no.pem"),
        ([".", "--set", "access.callers=no.toml"], "no.toml"),
    ],
)
def test_what_cannot_be_checked_is_exit_code_2(
    convoy: Convoy, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = convoy("check", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_variables_count(convoy: Convoy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_SERVER__GRPC_PORT", "many")
    assert "set by CONVOY_SERVER__GRPC_PORT" in convoy("check", tmp_path).stderr
