"""The examples of tritonclient in the pages run as they are printed, but for the ports."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.pages import BLOCKS, Block
from tests.service import networks
from tests.service.running import Server, skip_without

EXAMPLES = [block for block in BLOCKS if block.language == "python" and "tritonclient" in block.text]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Stand-ins for the networks of the pages, and an administration port."""
    skip_without("nghttp2")
    repository = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(side=32), repository, "lenet5")
    networks.save(networks.segmenter(), repository, "unet")
    settings = ["admin.enabled=true", "admin.port=0", "admin.shared_memory=true", "server.lame_duck_seconds=0"]
    with Server(repository, settings) as server:
        yield server


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"{block.page}-{block.line}")
def test_example_of_tritonclient_works(block: Block, server: Server, tritonclient_python: Path) -> None:
    code = block.text.replace("127.0.0.1:8001", server.grpc).replace("127.0.0.1:8003", server.admin)
    code = code.replace("127.0.0.1:8000", server.http.removeprefix("http://"))
    # What speaks HTTP needs no protobuf: it is beside us.
    python = sys.executable if "tritonclient.http" in code else tritonclient_python
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "print(" not in code or done.stdout
