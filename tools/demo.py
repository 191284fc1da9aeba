"""The demo: trains two networks, exports them, serves them and sends requests. `make demo` runs it."""

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from convoy.models.data.builtin import digits, scenes
from convoy.models.export import export
from convoy.models.training.run import RunFolder, default_settings

CONVOY = Path(sys.executable).with_name("convoy")
NETWORKS = {"lenet5": "digits", "unet": "digit-scenes"}
DIGITS_SHOWN = (2, 3, 4, 7, 8)
DIGIT_SIDE = 64  # pixels; the server resizes them to the network's 32
SCENES_SHOWN = ((128, 192), (96, 160), (160, 120))  # height and width: sizes that no training scene has
READY_SECONDS = 60.0
POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
# torch's threads sleep while they wait for each other: on a busy machine, spinning takes a third longer.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}
PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002}


class StepFailed(Exception):
    """A step of the demo failed; the message names it in one line."""


def main() -> int:
    """Runs the demo. Returns 0 if every step worked."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop the server at the end; free ports are chosen")
    parser.add_argument("--directory", type=Path, default=Path("demo"), help="output folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill also stops the server, as Ctrl-C does
    try:
        demonstrate(options.directory, options.once)
    except StepFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    return 0


def demonstrate(directory: Path, once: bool) -> None:
    """Runs all steps. With `once` the server is stopped at the end, else it runs until Ctrl-C. Raises StepFailed."""
    ports = _free_ports() if once else PORTS
    if not once:
        _check_free(ports)
    repository = prepare(directory)
    _heading("Held-out images: no network was trained on this handwriting")
    pictures = write_images(directory / "images")
    for path in pictures:
        print(f"  {path}")
    with _server(repository, ports, directory / "server.log") as server:
        _send_requests(directory, pictures, ports)
        if once:
            return
        with contextlib.suppress(KeyboardInterrupt):
            _print_next_steps(directory, pictures, ports)
            _wait_for_end(server)
        print("\nstopping the server")


def prepare(directory: Path) -> Path:
    """Trains both networks and exports them, as a user would. Returns the model repository below `directory`.

    Finished steps are not repeated, unless the source they depend on has changed. Concurrent calls take turns. Raises
    StepFailed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    repository = directory / "repository"
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for architecture, data in NETWORKS.items():
            folder = run_folder(directory, architecture)
            _heading(f"Train {architecture} on {data}")
            if folder.finished(default_settings(architecture, data)):
                print(f"  done before: {folder.chosen()}")
            else:
                _convoy("train", architecture, "--data", data, "--output", folder.root)
            _heading(f"Export {architecture}")
            if export.exported_from(folder.chosen(), repository, architecture):
                print(f"  done before: {repository / architecture}")
            else:
                _convoy("export", folder.chosen(), "--repository", repository)
    return repository


def run_folder(directory: Path, architecture: str) -> RunFolder:
    """Returns the folder in which `prepare` trains an architecture."""
    return RunFolder(directory / "runs" / f"{architecture}-{NETWORKS[architecture]}")


def write_images(folder: Path) -> list[Path]:
    """Writes held-out digits, then scenes, as PNG files. A digit's file name ends with its label."""
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


def _send_requests(directory: Path, pictures: Sequence[Path], ports: dict[str, int]) -> None:
    target = ["--server", f"127.0.0.1:{ports['grpc']}"] if ports != PORTS else []
    shown = [path for path in pictures if path.name.startswith("digit-")]
    scene = next(path for path in pictures if path.name.startswith("scene-"))

    _heading("Classify handwritten digits")
    _convoy("classify", *shown, "--model", "lenet5", *target)
    answers = _convoy("classify", *shown, "--model", "lenet5", "--json", *target, capture=True)
    _compare(shown, [msgspec.json.decode(line)["labels"][0]["name"] for line in answers.splitlines()])

    _heading("Segment a scene")
    mask = directory / f"{scene.stem}-mask.png"
    _convoy("segment", scene, "-o", mask, "--model", "unet", *target)
    if not mask.is_file():
        raise StepFailed(f"convoy segment wrote no {mask}")

    _heading("Many callers at once: batches form")
    _convoy("bench", "--model", "lenet5", "--concurrency", 32, "--seconds", 3, *target)

    address = f"http://127.0.0.1:{ports['metrics']}/metrics"
    _heading(f"Metrics ({address})")
    prefixes = ("convoy_batch_size_sum", "convoy_batch_size_count", "convoy_request_duration_seconds_count")
    lines = [line for line in _get(address).splitlines() if line.startswith(prefixes) and "lenet5" in line]
    if not lines:
        raise StepFailed(f"the metrics at {address} do not mention lenet5")
    print("\n".join(lines))


def _compare(shown: Sequence[Path], answers: Sequence[str]) -> None:
    if len(answers) != len(shown):
        raise StepFailed(f"convoy classify returned {len(answers)} of {len(shown)} images")
    wrong = [(path, name) for path, name in zip(shown, answers, strict=True) if path.stem.split("-")[1] != name]
    for path, name in wrong:
        print(f"wrong: {path.name} was read as {name}")
    print(f"{len(shown) - len(wrong)} of {len(shown)} digits read right")


def _print_next_steps(directory: Path, pictures: Sequence[Path], ports: dict[str, int]) -> None:
    _heading("The server keeps running. Try, in another terminal:")
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
    _heading("Serve")
    options = [f"--{name}-port={port}" for name, port in ports.items() if port != PORTS[name]]
    command = [str(CONVOY), "serve", "--repository", str(repository), *options]
    _echo([*command, "&"])
    with log.open("wb") as file:
        # In its own session, Ctrl-C reaches only the demo, which then stops the server in order.
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        _until_ready(server, f"http://127.0.0.1:{ports['http']}/readyz", log)
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
    command = [str(CONVOY), *map(str, arguments)]
    _echo(command)
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE if capture else None, env=os.environ | ENVIRONMENT
    )
    if done.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if done.returncode:
        raise StepFailed(f"convoy {arguments[0]} failed with exit code {done.returncode}")
    return done.stdout or ""


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError as error:  # refused, timed out, or a status that is not 200
        raise StepFailed(f"GET {address}: {error}") from None


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        # All are open at once, so that they differ.
        sockets = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in PORTS}
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def _check_free(ports: dict[str, int]) -> None:
    for port in ports.values():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            message = f"port {port} is in use: stop the process that listens there, or run: make demo ARGS=--once"
            raise StepFailed(message) from None


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
