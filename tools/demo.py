"""The demo: trains two networks, exports them, serves them and sends requests. `make demo` runs it."""

import argparse
import contextlib
import fcntl
import itertools
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tools.ports import free_ports

if TYPE_CHECKING:
    from convoy.models.training.run import RunFolder, Settings

CONVOY = Path(sys.executable).with_name("convoy")
NETWORKS = {"lenet5": "digits", "unet": "digit-scenes"}
DIGITS_SHOWN = (2, 3, 4, 7, 8)
DIGIT_SIDE = 64  # pixels; the server resizes them to the network's 32
SCENES_SHOWN = ((128, 192), (96, 160), (160, 120))  # height and width: sizes that no training scene has
READY_SECONDS = 60.0
POLL_SECONDS = 0.2
ASK_SECONDS = 0.25  # between requests while a network trains
STOP_SECONDS = 30.0
PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002}


# Differences from the recipe of an architecture. Small crops of the scenes halve the time of their network.
RECIPE: dict[str, dict[str, Any]] = {
    "unet": {
        "epochs": 6,
        "learning_rate": 8e-3,
        "schedule": "one-cycle",
        "loss": "cross-entropy+dice",
        "crop": 48,
    }
}


class StepFailed(Exception):
    """A step of the demo failed; the message names it in one line."""


def main() -> int:
    """Runs the demo. Returns 0 if every step worked."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop the server at the end; free ports are chosen")
    parser.add_argument("--directory", type=Path, default=Path("demo"), help="output folder")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill also stops the server, as Ctrl-C does
    try:
        demonstrate(chosen.directory, chosen.once)
    except StepFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    return 0


def demonstrate(directory: Path, once: bool) -> None:
    """Runs all steps. With `once` the server is stopped at the end, else it runs until Ctrl-C. Raises StepFailed.

    The server starts with the first network, answers while the second one trains, and then serves it, too.
    """
    start = time.monotonic()
    ports = _free_ports() if once else PORTS
    if not once:
        _check_free(ports)
    repository = prepare_one(directory, "lenet5")
    with _step("Held-out images: no network was trained on this handwriting"):
        pictures = write_images(directory / "images")
        for path in pictures:
            print(f"  {path}")
    shown = [path for path in pictures if path.name.startswith("digit-")]
    with _server(repository, ports, directory / "server.log") as server:
        _classify(shown, ports)
        print(f"the first answers came {time.monotonic() - start:.0f} s after the start of the demo")
        with Caller(shown, ports) as caller:
            prepare_one(directory, "unet")
            _until_served(repository, "unet", ports)
        print(caller.summary())
        _send_requests(directory, pictures, ports)
        print(f"\nAll of it took {time.monotonic() - start:.0f} s.")
        print(f"The answers in one picture: {directory / 'answers.png'}")
        if once:
            return
        with contextlib.suppress(KeyboardInterrupt):
            _print_next_steps(directory, pictures, ports)
            _wait_for_end(server)
        print("\nstopping the server")


def prepare(directory: Path) -> Path:
    """Trains both networks and exports them. Returns the model repository below `directory`. Raises StepFailed."""
    for architecture in NETWORKS:
        prepare_one(directory, architecture)
    return directory / "repository"


def prepare_one(directory: Path, architecture: str) -> Path:
    """Trains a network and exports it, as a user would, but in this process: importing torch takes seconds.

    Finished steps are not repeated, unless the source they depend on has changed, and a run that was interrupted is
    resumed. Concurrent calls take turns. Returns the model repository. Raises StepFailed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    repository = directory / "repository"
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _step(f"Train {architecture} on {NETWORKS[architecture]}"):
            print("  loading PyTorch ...", flush=True)
            folder = _trained(directory, architecture)
        from convoy.models.export import export

        with _step(f"Export {architecture}"):
            if export.exported_from(folder.chosen(), repository, architecture):
                print(f"  done before: {repository / architecture}")
            elif _convoy_here("export", folder.chosen(), "--repository", repository):
                raise StepFailed(f"convoy export failed for {folder.chosen()}")
    return repository


def run_folder(directory: Path, architecture: str) -> "RunFolder":
    """Returns the folder in which `prepare` trains an architecture."""
    from convoy.models.training.run import RunFolder

    return RunFolder(directory / "runs" / f"{architecture}-{NETWORKS[architecture]}")


def settings(architecture: str) -> "Settings":
    """Returns the settings of the demo's run of an architecture."""
    from convoy.models.training.run import default_settings

    default = default_settings(architecture, NETWORKS[architecture])
    recipe = msgspec.structs.replace(default.recipe, **RECIPE.get(architecture, {}))
    return msgspec.structs.replace(default, recipe=recipe)


def options(architecture: str) -> list[str]:
    """Returns the options of `convoy train` for these settings."""
    names = {"learning_rate": "lr"}
    changes = RECIPE.get(architecture, {}).items()
    return [word for name, value in changes for word in (f"--{names.get(name, name)}", str(value))]


def write_images(folder: Path) -> list[Path]:
    """Writes held-out digits, then scenes, as PNG files. A digit's file name ends with its label."""
    import numpy as np
    from PIL import Image

    from convoy.models.data.builtin import digits, scenes

    folder.mkdir(parents=True, exist_ok=True)
    held_out = digits.indices("test")
    labels = digits.strokes()[1][held_out]
    paths = []
    for label in DIGITS_SHOWN:
        image, _ = digits.draw(held_out[np.flatnonzero(labels == label)[0]], DIGIT_SIDE)
        paths.append(folder / f"digit-{label}.png")
        Image.fromarray(image[..., 0]).save(paths[-1])
    for number, size in enumerate(SCENES_SHOWN, start=1):
        paths.append(folder / f"scene-{number}.png")
        Image.fromarray(scenes.draw("test", number, size).image).save(paths[-1])
    return paths


class Caller:
    """Sends pictures to the server, one after the other, from a thread of its own, until the block ends."""

    def __init__(self, pictures: Sequence[Path], ports: dict[str, int]) -> None:
        self.pictures, self.target = pictures, _target(ports)
        self.seconds: list[float] = []
        self.right = 0
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def summary(self) -> str:
        """Returns what was answered. Raises StepFailed if a request failed."""
        if self.error is not None:
            raise StepFailed(f"the server did not answer while the second network was made: {self.error}")
        if not self.seconds:
            return "the server answered no pictures meanwhile"
        middle = statistics.median(self.seconds) * 1000
        return f"meanwhile the server answered {len(self.seconds)} pictures, {self.right} right; median {middle:.0f} ms"

    def _call(self) -> None:
        import convoy

        try:
            with convoy.Client(self.target) as client:
                for path in itertools.cycle(self.pictures):
                    if self._ended.wait(ASK_SECONDS):
                        return
                    start = time.monotonic()
                    answer = client.classify(path, "lenet5")
                    self.seconds.append(time.monotonic() - start)
                    self.right += answer.labels[0].name == _label(path)
        except convoy.ConvoyError as error:
            self.error = error


def _trained(directory: Path, architecture: str) -> "RunFolder":
    folder, wanted = run_folder(directory, architecture), settings(architecture)
    if folder.finished(wanted):
        print(f"  done before: {folder.chosen()}")
        return folder
    if _interrupted(folder, wanted) and not _convoy_here("train", "--resume", folder.last):
        return folder
    shutil.rmtree(folder.root, ignore_errors=True)
    words = ["train", architecture, "--data", NETWORKS[architecture], *options(architecture)]
    if _convoy_here(*words, "--output", folder.root):
        raise StepFailed(f"convoy train {architecture} failed")
    return folder


def _interrupted(folder: "RunFolder", wanted: "Settings") -> bool:
    """Returns whether a run with these settings and the current source can be resumed."""
    from convoy.models import checkpoint
    from convoy.models.errors import BadCheckpoint
    from convoy.models.training.run import source_digest

    note = folder.read()
    if note is None or note.complete or (note.settings, note.source) != (wanted, source_digest(wanted.architecture)):
        return False
    try:
        return checkpoint.epochs(folder.last) < wanted.recipe.epochs
    except BadCheckpoint:
        return False


def _classify(shown: Sequence[Path], ports: dict[str, int]) -> None:
    target = _target_option(ports)
    with _step("Classify handwritten digits"):
        _convoy("classify", *shown, "--model", "lenet5", *target)
        answers = _convoy("classify", *shown, "--model", "lenet5", "--json", *target, capture=True)
        _compare(shown, [msgspec.json.decode(line)["labels"][0]["name"] for line in answers.splitlines()])


def _send_requests(directory: Path, pictures: Sequence[Path], ports: dict[str, int]) -> None:
    target = _target_option(ports)
    scene = next(path for path in pictures if path.name.startswith("scene-"))

    with _step("Segment a scene"):
        mask = directory / f"{scene.stem}-mask.png"
        _convoy("segment", scene, "-o", mask, "--model", "unet", *target)
        if not mask.is_file():
            raise StepFailed(f"convoy segment wrote no {mask}")

    with _step("Many callers at once: batches form"):
        _convoy("bench", "--model", "lenet5", "--concurrency", 32, "--seconds", 3, *target)

    address = f"http://127.0.0.1:{ports['metrics']}/metrics"
    with _step(f"Metrics ({address})"):
        prefixes = ("convoy_batch_size_sum", "convoy_batch_size_count", "convoy_request_duration_seconds_count")
        lines = [line for line in _get(address).splitlines() if line.startswith(prefixes) and "lenet5" in line]
        if not lines:
            raise StepFailed(f"the metrics at {address} do not mention lenet5")
        print("\n".join(lines))

    from tools import answers_picture

    answers_picture.draw(_target(ports), pictures, directory / "answers.png")


def _compare(shown: Sequence[Path], answers: Sequence[str]) -> None:
    if len(answers) != len(shown):
        raise StepFailed(f"convoy classify returned {len(answers)} of {len(shown)} images")
    wrong = [(path, name) for path, name in zip(shown, answers, strict=True) if _label(path) != name]
    for path, name in wrong:
        print(f"wrong: {path.name} was read as {name}")
    print(f"{len(shown) - len(wrong)} of {len(shown)} digits read right")


def _label(path: Path) -> str:
    return path.stem.split("-")[1]


def _print_next_steps(directory: Path, pictures: Sequence[Path], ports: dict[str, int]) -> None:
    _heading("The server keeps running. Open its page:")
    print(f"  http://127.0.0.1:{ports['http']}/")
    print("or try, in another terminal:")
    convoy, folder = _shown(CONVOY), directory / "images"
    print(f"  {convoy} classify {pictures[0]} --model lenet5")
    print(f"  {convoy} segment {folder / 'scene-2.png'} -o {directory / 'mask.png'}")
    print(f"  {convoy} models")
    print(f"  {convoy} bench --model unet --concurrency 8 --seconds 5")
    print(f"  curl http://127.0.0.1:{ports['metrics']}/metrics")
    print("Ctrl-C here stops it.", flush=True)


def _wait_for_end(server: subprocess.Popen[bytes]) -> None:
    raise StepFailed(f"the server ended by itself with exit code {server.wait()}")


@contextlib.contextmanager
def _server(repository: Path, ports: dict[str, int], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A ready server on these ports. It is stopped with SIGTERM at the end and must then exit with code 0."""
    options = [f"--{name}-port={port}" for name, port in ports.items() if port != PORTS[name]]
    command = [str(CONVOY), "serve", "--repository", str(repository), *options]
    _heading("Serve")
    _echo([*command, "&"])
    start = time.monotonic()
    with log.open("wb") as file:
        # In its own session, Ctrl-C reaches only the demo, which then stops the server in order.
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        _until_ready(server, f"http://127.0.0.1:{ports['http']}/readyz", log)
        _print_seconds(start)
        yield server
    finally:
        code = _stop(server)
    if code:
        raise StepFailed(f"the server ended with exit code {code} after SIGTERM, want 0; its log is {log}")
    print("server stopped with exit code 0")


def _until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StepFailed(f"the server ended with exit code {server.returncode}: {_tail(log)}")
        try:
            _get(address)
        except StepFailed:
            time.sleep(POLL_SECONDS)
        else:
            print(f"  ready: {address}")
            return
    raise StepFailed(f"the server was not ready within {READY_SECONDS:.0f} s: {_tail(log)}")


def _until_served(repository: Path, model: str, ports: dict[str, int]) -> None:
    """Waits until the server, which watches its repository, serves the newest version of a model."""
    import convoy
    from convoy.models.export.publish import versions

    newest, deadline = versions(repository, model)[-1], time.monotonic() + READY_SECONDS
    with _step(f"The server finds {model} in its repository"), convoy.Client(_target(ports)) as client:
        state = "not listed"
        while state != "ready":
            if time.monotonic() > deadline:
                raise StepFailed(f"version {newest} of {model} is {state} after {READY_SECONDS:.0f} s, want ready")
            listed = {(each.model, each.version): each.state for each in client.models()}
            state = listed.get((model, newest), "not listed")
            time.sleep(POLL_SECONDS)
        print(f"  serves: {model}, version {newest}")


def _stop(server: subprocess.Popen[bytes]) -> int:
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        return server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        # The whole process group, including its engine and front ends.
        os.killpg(server.pid, signal.SIGKILL)
        return server.wait()


def _convoy(*arguments: object, capture: bool = False) -> str:
    """Runs a command of the client."""
    command = [str(CONVOY), *map(str, arguments)]
    _echo(command)
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if done.returncode:
        raise StepFailed(f"convoy {arguments[0]} failed with exit code {done.returncode}")
    return done.stdout or ""


def _convoy_here(*arguments: object) -> int:
    """Runs a command in this process, which has imported torch already, and returns its exit code."""
    from convoy.service import cli

    command = [str(CONVOY), *map(str, arguments)]
    _echo(command)
    code = cli.run(command[1:])
    sys.stdout.flush()
    if code == 130:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it from the first one on
        raise KeyboardInterrupt
    return code


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError as error:  # refused, timed out, or a status that is not 200
        raise StepFailed(f"GET {address}: {error}") from None


def _target(ports: dict[str, int]) -> str:
    return f"127.0.0.1:{ports['grpc']}"


def _target_option(ports: dict[str, int]) -> list[str]:
    return ["--server", _target(ports)] if ports != PORTS else []


def _free_ports() -> dict[str, int]:
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))


def _check_free(ports: dict[str, int]) -> None:
    for port in ports.values():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            message = f"port {port} is in use: stop the process that listens there, or run: make demo ARGS=--once"
            raise StepFailed(message) from None


@contextlib.contextmanager
def _step(text: str) -> Iterator[None]:
    """Prints a heading, and at the end the time that the step took."""
    _heading(text)
    start = time.monotonic()
    yield
    _print_seconds(start)


def _print_seconds(start: float) -> None:
    print(f"-- {time.monotonic() - start:.1f} s", flush=True)


def _heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _echo(command: Sequence[str]) -> None:
    print("$ " + " ".join(word if word == "&" else shlex.quote(word) for word in ("convoy", *command[1:])), flush=True)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return " | ".join(line for line in lines[-6:] if line) or "its log is empty"


if __name__ == "__main__":
    sys.exit(main())
