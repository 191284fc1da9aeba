"""The CPU time of a process and all below it, and a bare gRPC server to compare with."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests import processes


def cpu_seconds(pid: int) -> float:
    """Of a process and its children's children, as far as they and their threads live."""
    return sum(processes.ran_seconds(each) for each in (pid, *processes.below(pid)))


class Echo:
    """A gRPC server in a process of its own that answers every request with so many bytes after so many seconds."""

    def __init__(
        self,
        answer_bytes: int,
        seconds: float = 0.0,
        kind: str = "uvloop",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "tests.performance.echo", str(answer_bytes), str(seconds), kind]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        self.target = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
