"""A client nobody here wrote, in another language: @grpc/grpc-js against a running server."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.service import networks
from tests.service.running import Server
from tests.service.test_vision import grey

ROOT = Path(__file__).parents[2]
PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
FOLDER = ROOT / ".cache" / "grpc-js"


@pytest.fixture(scope="session")
def node_path() -> Path:
    """The folder of the packages; installed by the first run, found by the next ones."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    stamp = FOLDER / ".installed"
    if not stamp.is_file() or stamp.read_text() != " ".join(PACKAGES):
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(FOLDER), *PACKAGES]
        subprocess.run(install, check=True, timeout=240)
        stamp.write_text(" ".join(PACKAGES))
    return FOLDER / "node_modules"


@pytest.mark.parametrize("transport", ["nghttp2", "grpcio"])
def test_grpc_js_is_answered_as_any_other_client(node_path: Path, tmp_path: Path, transport: str) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    best = int((grey(3).reshape(-1) @ networks.classifier_weights()).argmax())
    with Server(tmp_path, [f"server.transport={transport}", "server.lame_duck_seconds=0"]) as server:
        proto = ROOT / "proto" / "convoy" / "v1" / "vision.proto"
        command = ["node", str(Path(__file__).with_name("talk.js")), server.grpc, str(proto), grey(3).tobytes().hex()]
        environment = {**os.environ, "NODE_PATH": str(node_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    labels = answers["one"]["results"][0]["classification"]["labels"]
    assert (len(labels), labels[0]["index"], labels[0]["name"]) == (3, best, "abcdefghij"[best])
    assert answers["one"]["results"][0]["timings"]["total_seconds"] > 0
    assert answers["many"] == [best] * 50
    assert (answers["wrong"]["code"], "model 'nobody' is unknown" in answers["wrong"]["message"]) == ("NOT_FOUND", True)
    assert "grpc-status-details-bin" in answers["wrong"]["metadata"]
    assert answers["late"]["code"] == "DEADLINE_EXCEEDED"
    assert answers["cancelled"]["code"] == "CANCELLED"
    assert answers["streamed"] == {"1": best, "2": "UNKNOWN_MODEL", "3": best}
