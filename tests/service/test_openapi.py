"""The OpenAPI document says what the server does: schemathesis makes requests of it, and looks at the answers."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import networks
from tests.service.running import Server
from tests.service.test_http_api import ask

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_OFFERED = "livez|readyz|explain|repository/models"  # but for these: a state, or 501


def run(server: Server, folder: Path, examples: int, checks: str = _CHECKS) -> subprocess.CompletedProcess[str]:
    (folder / "schemathesis.toml").write_text(
        '[parameters]\n"path.model" = ["letters", "colours", "doubler"]\n"path.version" = "1"\n'
    )
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.http}/openapi.json", "--no-color"]
    options = ["--checks", checks, "--exclude-path-regex", _OFFERED, "--max-examples", str(examples), "--seed", "1"]
    return subprocess.run(
        [*command, *options, "--phases", "coverage,fuzzing"],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("openapi")
    networks.save(networks.classifier(), root, "letters")
    networks.save(networks.segmenter(), root, "colours")
    networks.save(networks.doubler(), root, "doubler")
    with Server(root, ["server.lame_duck_seconds=0"]) as server:
        yield server


def cases(done: subprocess.CompletedProcess[str]) -> int:
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None, done.stdout[-3000:]
    return int(found[1])


def test_server_never_answers_what_its_document_does_not_say(server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path, 5)
    assert done.returncode == 0, done.stdout[-5000:]
    assert cases(done) >= 500


@pytest.mark.soak
def test_the_same_for_thousands_of_requests(server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path, 150)
    assert done.returncode == 0, done.stdout[-5000:]
    assert cases(done) >= 2000, done.stdout[-300:]


def test_document_has_every_path_with_its_methods(server: Server) -> None:
    status, _, body = ask(f"{server.http}/openapi.json")
    assert status == 200
    document = json.loads(body)
    assert {"/v2/models/{model}/infer", "/v1/models/{model}:classify", "/livez"} <= set(document["paths"])
    assert document == json.loads(ask(f"{server.http}/v2/openapi.json")[2])
    for path, operations in document["paths"].items():
        for method in operations:
            url = server.http + path.format(model="letters", version="1", number="1")
            wrong = {"get": b"x", "post": None}[method]
            assert ask(url, wrong)[0] == 405 or set(operations) == {"get", "post"}
