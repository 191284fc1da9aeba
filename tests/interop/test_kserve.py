"""A client nobody here wrote: KServe's SDK, over HTTP in both of its protocols and over gRPC."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.service.client.client import Client
from tests.service import networks
from tests.service.running import Server

ASK = Path(__file__).with_name("ask_as_kserve.py")


@pytest.mark.soak
def test_sdk_of_kserve_gets_the_answers_of_our_client(kserve_python: Path, tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, ["server.lame_duck_seconds=0"]) as server:
        command = [kserve_python, ASK, server.http, server.grpc]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        with Client(server.grpc) as client:
            pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
            labels = client.classify(pixels, "letters", top_k=networks.CLASSES).labels
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told.pop("v2 up") == told.pop("grpc up") == [True] * 3
    assert told.pop("v1 up") == [True]
    wanted = [label.probability for label in sorted(labels, key=lambda label: label.index)]
    assert set(told) == {"v2 binary", "v2 json", "v1", "grpc"}
    for way, found in told.items():
        assert found == pytest.approx(wanted, abs=1e-7), way
