"""The demo's pieces, against a stand-in for the `convoy` command; `test_trained.py` runs the whole."""

import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.models.commands import train
from convoy.models.data.builtin import digits, scenes
from convoy.models.training import run
from convoy.models.training.run import Note, Settings, source_digest
from convoy.service import cli
from tools import demo
from tools.demo import StepFailed

# Serves until SIGTERM, then exits as it is told; other commands print their arguments.
CONVOY = """#!{python}
import http.server, signal, sys
command, arguments = sys.argv[1], sys.argv[2:]
if command == "fail":
    sys.exit(3)
if command != "serve":
    print("ran", command, *arguments)
    sys.exit(0)
if {exit_at_once}:
    print("convoy serve: port 1 is taken", file=sys.stderr)
    sys.exit(2)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
(port,) = (int(a.partition("=")[2]) for a in arguments if a.startswith("--http-port="))
signal.signal(signal.SIGTERM, lambda *_: sys.exit({exit_code}))
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(folder: Path, exit_code: int = 0, exit_at_once: bool = False) -> Path:
    path = folder / "convoy"
    path.write_text(CONVOY.format(python=sys.executable, exit_code=exit_code, exit_at_once=exit_at_once))
    path.chmod(0o755)
    return path


class NoCaller(contextlib.nullcontext[Any]):
    """Sends nothing."""

    def __init__(self, *_: object) -> None:
        super().__init__(self)

    def summary(self) -> str:
        return ""


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`main` takes SIGTERM over."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def convoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CONVOY", stand_in(tmp_path))
    monkeypatch.setattr(demo, "POLL_SECONDS", 0.01)


def test_pictures_are_held_out_and_large_enough_for_a_person(tmp_path: Path) -> None:
    paths = demo.write_images(tmp_path)
    shown = [path for path in paths if path.name.startswith("digit-")]
    held_out = digits.indices("test")
    rendered = {
        label: [digits.strokes()[0][i] for i in held_out if digits.strokes()[1][i] == label] for label in range(10)
    }
    for path in shown:
        image = Image.open(path)
        assert (image.mode, image.size) == ("L", (64, 64))
        label = int(path.stem.split("-")[1])
        expected = digits.render(rendered[label][0], 64, 6, 1)
        assert np.abs(np.asarray(image) / 255 - expected).max() < 0.01
    assert len(shown) >= 4
    sizes = {Image.open(path).size for path in paths if path.name.startswith("scene-")}
    assert len(sizes) == len(paths) - len(shown) >= 2
    assert min(min(size) for size in sizes) >= 96


def test_scenes_shown_are_made_of_held_out_strokes() -> None:
    own = set(digits.indices("test").tolist())
    for number, size in enumerate(demo.SCENES_SHOWN, start=1):
        assert set(scenes.draw("test", number, size).strokes) <= own
        assert size not in scenes.SIZES


def test_command_is_shown_as_a_user_would_type_it(capfd: pytest.CaptureFixture[str]) -> None:
    demo._convoy("classify", "a b.png", "--top-k", 3)
    assert capfd.readouterr().out.splitlines() == [
        "$ convoy classify 'a b.png' --top-k 3",
        "ran classify a b.png --top-k 3",
    ]


def test_command_that_fails_ends_the_demo_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "prepare_one", lambda *_: demo._convoy("fail"))
    monkeypatch.setattr(sys, "argv", ["demo", "--once", "--directory", str(tmp_path)])
    assert demo.main() == 1
    assert capsys.readouterr().err == "demo: convoy fail failed with exit code 3\n"


def test_server_is_ready_inside_and_stopped_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with demo._server(tmp_path, demo._free_ports(), tmp_path / "log") as server:
        assert server.poll() is None
    assert server.returncode == 0
    out = capsys.readouterr().out
    assert f"convoy serve --repository {tmp_path}" in out
    assert "stopped with exit code 0" in out


def test_server_that_does_not_end_well_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CONVOY", stand_in(tmp_path, exit_code=4))
    with (
        pytest.raises(StepFailed, match="ended with exit code 4 after SIGTERM, want 0"),
        demo._server(tmp_path, demo._free_ports(), tmp_path / "log"),
    ):
        pass


def test_server_that_does_not_start_fails_the_demo_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CONVOY", stand_in(tmp_path, exit_at_once=True))
    with (
        pytest.raises(StepFailed, match=r"ended with exit code 2: convoy serve: port 1 is taken"),
        demo._server(tmp_path, demo._free_ports(), tmp_path / "log"),
    ):
        raise AssertionError("never ready")


def test_server_that_dies_meanwhile_fails_the_demo(tmp_path: Path) -> None:
    with demo._server(tmp_path, demo._free_ports(), tmp_path / "log") as server:
        server.send_signal(signal.SIGKILL)
        with pytest.raises(StepFailed, match="ended by itself with exit code -9"):
            demo._wait_for_end(server)
        server.returncode = 0  # what follows is another test


def test_ctrl_c_stops_the_running_server_and_is_a_good_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ports, server = demo._free_ports(), demo._server
    monkeypatch.setattr(demo, "_check_free", lambda _: None)
    for name in ("prepare_one", "_classify", "_send_requests", "_until_served"):
        monkeypatch.setattr(demo, name, lambda directory, *_: directory)
    monkeypatch.setattr(demo, "Caller", NoCaller)
    monkeypatch.setattr(demo, "_server", lambda repository, _, log: server(repository, ports, log))
    monkeypatch.setattr(demo, "_wait_for_end", lambda _: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(sys, "argv", ["demo", "--directory", str(tmp_path)])
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "  http://127.0.0.1:8000/\n" in out.replace(str(ports["http"]), "8000")
    assert "or try, in another terminal" in out
    assert out.endswith("server stopped with exit code 0\n")


def test_step_that_fails_while_serving_is_the_one_that_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(StepFailed, match="convoy fail failed"),
        demo._server(tmp_path, demo._free_ports(), tmp_path / "log") as server,
    ):
        demo._convoy("fail")
    assert server.returncode == 0  # and the server is stopped all the same


def test_taken_port_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(demo, "PORTS", {"grpc": taken.getsockname()[1]})
        with pytest.raises(
            StepFailed, match=r"port \d+ is in use: stop the process that listens there, or run: make demo ARGS=--once"
        ):
            demo.demonstrate(tmp_path / "demo", once=False)
    assert not (tmp_path / "demo").exists()


def test_free_ports_differ() -> None:
    assert len(set(demo._free_ports().values())) == 3


def test_digit_read_wrong_is_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    demo._compare([Path("digit-3.png"), Path("digit-7.png")], ["3", "9"])
    assert capsys.readouterr().out == "wrong: digit-7.png was read as 9\n1 of 2 digits read right\n"
    with pytest.raises(StepFailed, match="returned 1 of 2 images"):
        demo._compare([Path("digit-3.png"), Path("digit-7.png")], ["3"])


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[list[str]]]:
    """A demo whose commands are noted: a run of two epochs, killed in the second, and what was typed."""
    typed: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        typed.append(arguments)
        return 0

    monkeypatch.setattr(cli, "run", run)
    folder, wanted = demo.run_folder(tmp_path, "lenet5"), demo.settings("lenet5")
    folder.root.mkdir(parents=True)
    folder.write(
        Note(
            settings=wanted,
            source=source_digest("lenet5"),
            complete=False,
            epochs=1,
            seconds=1.0,
            checkpoint=folder.last.name,
            validation={},
        )
    )
    torch.save({"epoch": 0, "global_step": 40}, folder.last)
    return tmp_path, typed


def test_interrupted_training_is_resumed(trained: tuple[Path, list[list[str]]]) -> None:
    directory, typed = trained
    folder = demo._trained(directory, "lenet5")
    assert typed == [["train", "--resume", str(folder.last)]]


def test_run_of_other_source_is_not_resumed(
    trained: tuple[Path, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, typed = trained
    monkeypatch.setattr(run, "source_digest", lambda _: "another")
    folder = demo._trained(directory, "lenet5")
    assert typed == [["train", "lenet5", "--data", "digits", "--output", str(folder.root)]]
    assert not folder.last.exists()


def test_run_that_cannot_be_resumed_starts_again(trained: tuple[Path, list[list[str]]]) -> None:
    directory, typed = trained
    folder = demo.run_folder(directory, "lenet5")
    folder.last.write_bytes(b"half a checkpoint")
    demo._trained(directory, "lenet5")
    assert [words[:2] for words in typed] == [["train", "lenet5"]]


def test_settings_are_those_of_the_command_that_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise a finished run would not be recognised."""
    made: list[Settings] = []
    monkeypatch.setattr(train, "_train", lambda settings, *_: made.append(settings))
    for name in demo.NETWORKS:
        words = ["train", name, "--data", demo.NETWORKS[name], *demo.options(name)]
        assert cli.run([*words, "--output", str(tmp_path)]) == 0
    assert made == [demo.settings(name) for name in demo.NETWORKS]


def test_interrupt_of_a_command_in_this_process_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run", lambda _: 130)
    with pytest.raises(KeyboardInterrupt):
        demo._convoy_here("train", "lenet5")
