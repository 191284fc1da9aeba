"""A server in a network of its own, from which nothing leads out: all of it works, on the three ports that it names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import networks

# Runs in the network namespace, whose loopback is down at first.
_SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import numpy as np
from convoy.service.client.client import Client
from tests.service import networks
from tests.service.running import Server
from tests.service.test_vision import grey

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
root = Path(sys.argv[1])
with Server(root, ["server.frontends=2", "server.lame_duck_seconds=0", *sys.argv[2:]]) as server:
    with Client(server.grpc) as client:
        found = {"class": client.classify(grey(1), "letters").labels[0].index}
        found["mask"] = client.segment(np.zeros((8, 8, 3), np.uint8), "colours").mask.shape
        networks.save(networks.classifier(), root, "letters", 2)
        server.wait_for_log("model letters version 2 serves")
        found["models"] = sorted({model.model for model in client.models()})
    found["ready"] = server.get(f"{server.http}/readyz")[0]
    found["images"] = server.total("convoy_images_total")
    found["named"] = sorted(url.rpartition(":")[2] for url in (server.grpc, server.http, server.metrics))
    # Lines of the kernel's table: a local address, in hexadecimal, and a state; 0A is listening.
    tables = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = [entry[1].rpartition(":") for entry in tables if entry[3] == "0A"]
    found["listening"] = sorted({str(int(port, 16)) for _, _, port in listening})
    found["addresses"] = sorted({address for address, _, _ in listening})
    found["udp"] = len(Path("/proc/net/udp").read_text().splitlines()) - 1
print(json.dumps(found))
"""


@pytest.fixture
def alone() -> list[str]:
    """What begins a command that runs in a network of its own."""
    command = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        subprocess.run([*command, "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network of one's own can be made: {error}")
    return command


def test_everything_works_without_a_way_out_on_declared_ports_alone(alone: list[str], tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    networks.save(networks.segmenter(), tmp_path, "colours")
    command = [*alone, sys.executable, "-c", _SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["ready"], found["images"], found["mask"]) == (200, 2, [8, 8])
    assert found["models"] == ["colours", "letters"]
    assert len(found["named"]) == 3
    assert found["listening"] == sorted(found["named"])
    assert found["addresses"] == ["0100007F"]  # 127.0.0.1
    assert found["udp"] == 0
