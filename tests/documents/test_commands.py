"""Every command of the pages is run here, in a folder with small files of the names that they use.

What takes minutes, or needs what this machine may lack, is compared with the command's options alone, and stands in
`NOT_RUN` with the reason.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from convoy.service import cli, config
from tests.documents import grpcurl, workplace
from tests.documents.pages import BLOCKS, COMMANDS, ROOT, UNKNOWN, Block, Command, blocks, commands, paragraphs
from tests.service.running import Server
from tests.test_documents import unknown

CONVOY = Path(sys.executable).with_name("convoy")
DOCKER = "needs a container engine: `.ci/run` builds and checks the image"
HOUR = "takes an hour"
TRAINS = "trains for minutes: `.ci/run` runs it"
# The beginnings of commands that are not run, and why.
NOT_RUN = {
    "make demo": TRAINS,
    "make test": "runs these tests",
    "make install": "comes before these tests",
    "make perf": "measures for minutes, on a quiet machine",
    "make image": DOCKER,
    "make soak": HOUR,
    "make dashboards": "writes into the repository: tests/deploy/test_watching.py compares what it would write",
    "docker": DOCKER,
    "apt-get": "changes the system: `.ci/run` runs it",
    "protoc": "needs the generators for Go",
    "pip install": "downloads packages: `make install` does, for `.ci/run`",
    "kubectl": "needs a cluster: tests/deploy/test_kubernetes.py renders what it applies",
    "torchrun": "needs two machines: tests/models/training/test_distributed.py trains in two processes",
    "convoy train resnet50 --data pets --devices 4": "needs four devices, likewise",
    "convoy adopt-weights resnet50 resnet50.weights.h5": "reads 100 MB: tests/models/pretrained does so",
    "convoy profile lenet5 --repository repository --callers 16": "starts a server for each batch size: "
    "tests/service/commands/test_profile_model.py does so",
    "convoy score photos --model holiday.onnx -o scored --engine ray": "starts Ray: "
    "tests/service/scoring/test_ray_data.py does so",
    "python -m tools.structure_experiment": "trains 66 networks",
}
# Commands that query a server.
ASKING = {"bench", "classify", "health", "locate", "models", "segment"}
# Addresses of the pages, and which server stands for them.
ADDRESSES = {"127.0.0.1:8001": "grpc", "localhost:8001": "grpc", "triton:8001": "grpc"}
ADDRESSES |= {
    f"{host}:{port}": kind for host in ("127.0.0.1", "localhost") for port, kind in ((8000, "http"), (8002, "metrics"))
}


class Place(NamedTuple):
    """The folder, and the servers that run beside it: one in plain text, one with a certificate."""

    folder: Path
    server: Server
    secured: Server

    def address(self, kind: str) -> str:
        return self.server.grpc if kind == "grpc" else getattr(self.server, kind).removeprefix("http://")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("workplace")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        workplace.hasten(patch)
        workplace.furnish(folder)
        plain, secured = (_settings(text) for text in (workplace.PLAIN, workplace.SECURED))
        with Server(folder / "served", plain) as server, Server(folder / "served", secured) as with_certificate:
            # A server leaves it beside the model that it measures.
            shutil.copy(folder / "served" / "lenet5" / "1" / "profile.json", folder / "repository" / "lenet5" / "1")
            yield Place(folder, server, with_certificate)
    torch.set_num_threads(threads)


def _settings(text: str) -> list[str]:
    return ["server.lame_duck_seconds=0", *(word for before, word in pairwise(text.split()) if before == "--set")]


def reason_not_to_run(command: Command) -> str | None:
    text = " ".join(command.words)
    return next((reason for beginning, reason in NOT_RUN.items() if text.startswith(beginning)), None)


def distinct(run: bool) -> dict[str, Command]:
    """The commands that are run, or those that are not, by their text without comments."""
    return {" ".join(each.words): each for each in COMMANDS if (reason_not_to_run(each) is None) is run}


def served(words: list[str]) -> None:
    """Starts a server as a page says, on free ports, and stops it once it is ready."""
    ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
    more = ["--log-format", "text", "--set", "server.lame_duck_seconds=0", "--set", "admin.port=0"]
    process = subprocess.Popen([CONVOY, *words, *ports, *more], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "supervisor: ready" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, lines


def in_shell(text: str, place: Place) -> None:
    """Runs a line of the shell with the programs of the pages: grpcurl is played by a file beside this one."""
    programs = place.folder / "bin"
    if not programs.exists():
        programs.mkdir()
        grpcurl.install(programs)
        (programs / "convoy").symlink_to(CONVOY)
        if curl := shutil.which("curl"):  # a refusal is a failure
            (programs / "curl").write_text(f'#!/bin/sh\nexec {curl} --fail-with-body --silent --show-error "$@"\n')
            (programs / "curl").chmod(0o755)
    for address, kind in ADDRESSES.items():
        text = text.replace(address, place.address(kind))
    text = text.replace("--model holiday", "--model lenet5")
    text = re.sub(rf"\bconvoy ({'|'.join(ASKING)})\b", rf"convoy \1 --server {place.server.grpc}", text)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(place.folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or re.search(r">| -o ", text)


def run(command: Command, place: Place) -> None:
    """Does what the page says, in less time."""
    words = command.words[1:]
    if " ".join(words) in (*workplace.DONE, workplace.PLAIN, workplace.SECURED):
        return  # done before the first test
    if command.program != "convoy" or command.needs_shell:
        if command.program == "curl" and shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        in_shell(command.text, place)
    elif words[0] == "serve":
        served(words)
    else:
        words = workplace.shortened(words)
        if words[0] == "top":
            words = [word for word in words if word != "10.0.0.7:8002"]
            words = [word for word in words if word not in ("--metrics", "--once")]
            words += ["--metrics", place.address("metrics"), "--once"]
        if words[0] == "score":
            words = [word.replace("10.0.0.7:8001", place.server.grpc) for word in words]
        server = place.secured.grpc if "--ca" in words else place.server.grpc
        if "--server" in words:
            words[words.index("--server") + 1] = server
        elif words[0] in ASKING:
            words += ["--server", server]
        elif words[0] == "train" and "--resume" not in words and "--output" not in words:
            words += ["--output", f"typed/{command.page}-{command.line}"]
        assert cli.run(words) == 0


@pytest.mark.parametrize("command", distinct(True).values(), ids=distinct(True))
def test_command_does_what_its_page_says(command: Command, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    run(command, place)


def test_every_line_of_a_block_is_a_command_or_known_as_something_else() -> None:
    assert UNKNOWN == []


@pytest.mark.parametrize(
    ("text", "found", "left"),
    [
        ("    convoy models\n    helm install convoy", ["convoy models"], ["helm install convoy"]),
        ("    helm install convoy", [], ["helm install convoy"]),
        ("```sh\ncurl -s x | head\n```", ["curl -s x | head"], []),
        ("    $ convoy train x\n    epoch 1", ["convoy train x"], []),
        ("    convoy train \\\n    x\n\n    epoch 1", ["convoy train \\\nx"], []),
        ("- an item\n\n    helm of it", [], []),
        ("```python\nhelm = 1\n```", [], []),
    ],
)
def test_commands_of_a_page_are_found(text: str, found: list[str], left: list[str]) -> None:
    parts = [
        commands(part)
        for block in blocks("page", text)
        if not block.language.startswith("py")
        for part in paragraphs(block)
    ]
    assert [command.text for part, _ in parts for command in part] == found
    assert [line.split(": ")[1] for _, lines in parts for line in lines] == left


def misuse(command: Command) -> list[str]:
    """What a command that is not run names and what does not exist: options, targets, modules."""
    words = command.words
    if command.program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [word for word in words[1:] if "=" not in word and word not in targets]
    if command.program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return [name for word in words for name in re.findall(r"\[(\w+)\]", word) if name not in extras]
    if command.program in ("python", "python3"):
        return [] if words[1] == "-m" and importlib.util.find_spec(words[2]) else words[1:3]
    if command.program == "kubectl":
        return [word for word in words if word.startswith("deploy/") and not (ROOT / word).exists()]
    inner = words[words.index("convoy") + 1 :] if "convoy" in words else []
    return unknown(inner) if inner else []


@pytest.mark.parametrize("command", distinct(False).values(), ids=distinct(False))
def test_command_that_is_not_run_names_what_exists(command: Command) -> None:
    assert misuse(command) == []


@pytest.mark.parametrize(
    "text",
    [
        "make everything",
        "pip install '.[gpu]'",
        "python -m tools.nothing",
        "docker run convoy serv",
        "kubectl apply -k deploy/kubernetes/overlays/gpu",
        "torchrun convoy train x --epoch 3",
    ],
)
def test_command_that_names_what_does_not_exist_would_be_seen(text: str) -> None:
    assert misuse(Command("page", 1, text))


def test_commands_that_are_not_run_are_few_and_each_has_a_reason() -> None:
    every = {" ".join(command.words) for command in COMMANDS}
    unused = [beginning for beginning in NOT_RUN if not any(text.startswith(beginning) for text in every)]
    assert unused == []
    own, left = ([text for text in texts if text.startswith("convoy ")] for texts in (every, distinct(False)))
    assert len(left) <= len(own) / 15


# Which tests run the Python of the pages, by words in it or by its page; all other Python is run here.
PYTHON_RUN_BY = {
    "import convoy": "tests/service/test_readme.py",
    "tritonclient": "tests/interop/test_documents.py",
    "docs/adding-a-network.md": "tests/models/test_adding_a_network.py",
    "docs/scoring-engines.md": "tests/service/scoring/test_engines.py",
}
PYTHON = [block for block in BLOCKS if block.language == "python"]
HERE = [block for block in PYTHON if not any(key in block.text or key == block.page for key in PYTHON_RUN_BY)]


@pytest.mark.parametrize("block", HERE, ids=lambda block: f"{block.page}-{block.line}")
def test_python_of_a_page_runs(block: Block, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    exec(block.text, {})


def test_tests_that_run_the_other_python_are_there() -> None:
    assert all((ROOT / file).is_file() for file in PYTHON_RUN_BY.values())
    assert all(any(key in block.text or key == block.page for block in PYTHON) for key in PYTHON_RUN_BY)


def test_every_block_has_a_language_that_is_checked() -> None:
    known = {"", "sh", "bash", "console", "python", "toml", "json", "yaml", "haproxy", "nginx"}
    assert {block.language for block in BLOCKS} <= known
    for block in BLOCKS:
        if block.language in ("toml", "json"):
            (tomllib if block.language == "toml" else json).loads(block.text)


def test_configuration_of_a_page_is_valid(tmp_path: Path) -> None:
    shown = [block.text for block in BLOCKS if block.language == "toml" and block.text.startswith("[")]
    assert shown
    for text in shown:
        (tmp_path / "convoy.toml").write_text(text)
        config.load(tmp_path / "convoy.toml")
