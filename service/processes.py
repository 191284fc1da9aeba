"""A server's processes: started with exec, the first of each kind before the command line has been read.

To read it takes longer than to start a process; what an engine and a front end import does not depend on it. Who is
never told what to be ends in silence.
"""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["engine", "frontend"]

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # in the environment: prometheus_client reads it when it is imported

_MODULES: Mapping[Kind, str] = {"engine": "service.engine.main", "frontend": "service.frontend.main"}


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, of which each packet leaves the other as it came: for messages to the supervisor, and for a Channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Process:
    """A process that has been started. `channel` is the socket on which it hears what it is."""

    def __init__(self, kind: Kind, metrics_directory: str) -> None:
        self.channel, theirs = channel_pair()
        with theirs:
            # spawn, not fork: gRPC's and onnxruntime's threads do not survive a fork. A session of its own keeps a
            # terminal's Ctrl-C away from it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULES[kind], str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, METRICS_DIRECTORY: metrics_directory},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None as long as it lives; the negative number of the signal that killed it."""
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()


@dataclass(slots=True)
class Restarts:
    """How many processes were started again after one ended unasked. One writer: the supervisor's loop."""

    engines: dict[int, int]  # by device
    front_ends: int = 0


class Processes:
    """Starts the processes of a server, which count in one directory. One writer: the supervisor's loop."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="convoy-metrics-")
        self._ahead: dict[Kind, Process] = {}

    def start_ahead(self) -> None:
        """One of each kind, which wait to be asked for. They end with this process, when nobody has asked."""
        for kind in _MODULES:
            self._ahead[kind] = Process(kind, self.directory.name)
        atexit.register(self._end_those_ahead)

    def start(self, kind: Kind) -> Process:
        """One of a kind. Raises OSError where the system has no room for it."""
        return self._ahead.pop(kind, None) or Process(kind, self.directory.name)

    def _end_those_ahead(self) -> None:
        for process in self._ahead.values():
            process.kill()


@cache
def ours() -> Processes:
    """Of the server that this process is."""
    return Processes()
