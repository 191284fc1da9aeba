"""Files that kill, hang or mislead whoever reads them: the others load and serve as if they were not there."""

import os
import signal
import threading
from pathlib import Path

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import _best, _wait_until
from tests.service.test_vision import grey

# Trials have a low priority: on a busy machine, that of a good file takes seconds, too.
TRIAL_SECONDS = 8
QUICK = ("server.lame_duck_seconds=0", f"repository.trial_seconds={TRIAL_SECONDS}", "repository.poll_seconds=0.5")
# 50,000 brackets exceed the stack of a parser; 10,000 keys below each other take it a long time.
SETTINGS = {"deep": b"a=" + b"[" * 50_000, "long": b"a." * 30_000 + b"a=1", "number": b"a=" + b"9" * 5_000}


def states(server: Server) -> dict[str, tuple[str, str]]:
    with Client(server.grpc) as client:
        return {model.model: (model.state, model.reason) for model in client.models()}


def spoil(root: Path) -> None:
    """Adds models that must not be loaded."""
    networks.save_bytes(networks.deadly(), root, "aborts")
    networks.save(networks.endless(), root, "endless")
    for name, settings in SETTINGS.items():
        networks.save(networks.classifier(), root, name)
        (root / name / "model.toml").write_bytes(settings)
    networks.save(networks.classifier(), root, "waits")
    os.mkfifo(root / "waits" / "model.toml")
    (root / "waits-too" / "1").mkdir(parents=True)
    os.mkfifo(root / "waits-too" / "1" / "model.onnx")


def check_spoilt(server: Server) -> None:
    # It is logged before front ends know.
    _wait_until(lambda: {state for name, (state, _) in states(server).items() if name != "letters"} == {"unavailable"})
    found = states(server)
    assert found["aborts"] == (
        "unavailable",
        "loading it and a first run ended a process with SIGABRT; it is tried again when it changes",
    )
    assert found["endless"][1].startswith(f"loading it and a first run did not end within {TRIAL_SECONDS} s")
    assert found["deep"][1].startswith("model.toml: not TOML: ")  # Python's own words follow
    assert found["long"][1].startswith("model.toml: ")
    assert found["number"][1].startswith("model.toml: not TOML: ")
    assert found["waits"][1] == "model.toml is not a regular file"
    assert found["waits-too"][1] == "model.onnx is missing"
    for name in ("aborts", "endless"):
        assert server.wait_for_total("convoy_model_quarantined", 1, model=name) == 1
    assert server.total("convoy_engine_restarts_total") == 0


def test_files_that_kill_or_hang_are_quarantined_and_the_others_serve_at_once(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    spoil(tmp_path)
    with Server(tmp_path, QUICK, wait=False) as server, Client(server.grpc) as client:
        server.wait_for_log("model letters version 1 serves")
        _wait_until(lambda: states(server).get("letters", ("",))[0] == "ready")
        assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]
        assert not any("endless" in record["message"] for record in server.log)  # it has not even failed yet
        server.wait_for_log("model endless version 1 is not served")
        server.wait_for_log("ready")
        check_spoilt(server)
        # The next engine knows what the last one has found out.
        seen = len(server.log)
        os.kill(server.children()["engine"], signal.SIGKILL)
        server.wait_for_log("ready", after=seen)
        assert client.classify(grey(2), "letters").labels[0].index == _best(2)[0]
        _wait_until(lambda: states(server)["endless"][0] == "unavailable")
        # Another file is another matter.
        networks.save(networks.classifier(), tmp_path, "aborts")
        server.wait_for_log("model aborts version 1 serves")
        assert server.wait_for_total("convoy_model_quarantined", 0, model="aborts") == 0


def test_files_that_kill_or_hang_fail_no_call_when_they_come_while_others_serve(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, QUICK) as server, Client(server.grpc) as client:
        over = threading.Event()
        failures: list[ServerError] = []

        def call() -> None:
            while not over.is_set():
                try:
                    client.classify(grey(1), "letters")
                except ServerError as error:
                    failures.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        spoil(tmp_path)
        server.wait_for_log("model endless version 1 is not served")
        networks.save(networks.classifier(), tmp_path, "letters", 2)
        server.wait_for_log("model letters version 2 serves")
        over.set()
        caller.join()
        assert failures == []
        check_spoilt(server)


def test_without_trials_such_a_file_kills_the_engine(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    networks.save_bytes(networks.deadly(), tmp_path, "aborts")
    with Server(tmp_path, ["server.lame_duck_seconds=0", "repository.trial_seconds=0"], wait=False) as server:
        server.wait_for_log("it was loading model aborts version 1")
