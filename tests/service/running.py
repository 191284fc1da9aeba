"""A real server in processes of its own, for tests: started on free ports, stopped by process id."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from convoy.service import machine
from tests import processes

START_SECONDS = 180.0
# Python imports this module at its start.
_HOLD_BACK = """
import os, sys, time

while "convoy.service.engine.server" in sys.orig_argv and os.path.exists({!r}):
    time.sleep(0.02)
"""


def held_back(folder: Path) -> tuple[Path, dict[str, str]]:
    """A file, and the environment of a server whose engines do not start while the file is there. A state that ends
    when the next engine loads then lasts until a test has seen it. `folder` is for this alone."""
    file = folder / "held-back"
    (folder / "sitecustomize.py").write_text(_HOLD_BACK.format(str(file)))
    return file, {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def skip_without(transport: str) -> None:
    """Skips the test if it needs a library that is not installed."""
    if transport == "nghttp2" and not machine.has_library(machine.HTTP2_LIBRARY):
        pytest.skip(f"{machine.HTTP2_LIBRARY} is not installed")


class Server:
    """`convoy serve` on a repository. `grpc` is HOST:PORT, `admin`, too, or unix:PATH; `http` and `metrics` are base
    URLs."""

    transport = "auto"  # of servers to be started, unless their settings say otherwise

    def __init__(
        self,
        repository: Path,
        settings: Sequence[str] = (),
        *,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        grpc_port: str = "0",
        http_port: str = "0",
        serving: Sequence[str] = (),
    ) -> None:
        """`before` is called in the new process, before it becomes the server. `serving` are arguments in the place of
        the repository's."""
        self.repository = repository
        self.log: list[dict[str, Any]] = []
        command = [
            str(Path(sys.executable).with_name("convoy")),
            "serve",
            *(serving or ("--repository", str(repository))),
        ]
        ports = ["--grpc-port", grpc_port, "--http-port", http_port, "--metrics-port", "0"]
        options = [part for setting in (f"server.transport={self.transport}", *settings) for part in ("--set", setting)]
        self.process = subprocess.Popen(
            [*command, *ports, *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=before,  # noqa: PLW1509  it only calls the system
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._start(wait)
        except BaseException:
            self._kill()  # nobody has got hold of it yet who could
            raise

    def _start(self, wait: bool) -> None:
        fields = self.wait_for_log("listening")
        self.grpc: str = fields["grpc"]
        self.admin: str = fields.get("admin", "")
        self.http = f"http://{fields['http']}"
        self.metrics = f"http://{fields['metrics']}"
        if wait:
            self.wait_for_log("ready")

    def wait_for_log(self, message: str, seconds: float = START_SECONDS, after: int = 0) -> dict[str, Any]:
        """The first record, from number `after` on, whose message begins so."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for record in self.log[after:]:
                    if record["message"].startswith(message):
                        return record
                left = deadline - time.monotonic()
                ended = self.process.poll() is not None and not self._reader.is_alive()
                if left <= 0 or ended or (not self._changed.wait(min(left, 0.5)) and left <= 0):
                    raise AssertionError(f"no {message!r} in the log: {self.log[-5:]}")

    def children(self) -> dict[str, int]:
        """Process ids of the server's processes, by kind (engine, frontend); of several of a kind the last."""
        return {kind: pid for kind in ("engine", "frontend") for pid in self.processes(kind)}

    def processes(self, wanted: str) -> list[int]:
        """Process ids of all of a kind."""
        prefix = f"convoy.service.{wanted}"
        return [
            pid
            for pid in processes.children(self.process.pid)
            if any(word == prefix or word.startswith(f"{prefix}.") for word in processes.words(pid))
        ]

    def get(self, url: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The metrics: value by (name, labels)."""
        _, text = self.get(f"{self.metrics}/metrics")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        return sum(
            value for (found, having), value in self.samples().items() if found == name and labels.items() <= having
        )

    def wait_for_total(self, name: str, wanted: float, seconds: float = 30.0, **labels: str) -> float:
        """Ask for `total` until it is `wanted`, at most so long; what it is then."""
        deadline = time.monotonic() + seconds
        while (value := self.total(name, **labels)) != wanted and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        return value

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Signal the server and wait for its end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self._kill()
            self._reader.join(10)  # what it logged last is read, too

    def _kill(self) -> None:
        if self.process.poll() is None:
            for pid in (*self.processes("engine"), *self.processes("frontend")):
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"message": line.rstrip(), "level": "raw"}
            with self._changed:
                self.log.append(record)
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def refused(repository: Path, limit: str) -> str:
    """What a server says that does not start under a limit of the shell, such as "-n 12"; it must be one line."""
    convoy = Path(sys.executable).with_name("convoy")
    ports = "--grpc-port 0 --http-port 0 --metrics-port 0"
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit {limit}; exec {convoy} serve --repository {repository} {ports}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line
