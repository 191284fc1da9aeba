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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from convoy.service.errors import BadConfig

Kind = Literal["engine", "frontend"]

_MEMORY = Path("/dev/shm")
_PREFIX = "convoy-metrics-"
_ADDRESS = "address"
_OWN = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
_METRICS = "PROMETHEUS_MULTIPROC_DIR"  # in the environment: prometheus_client reads it when it is imported

_MODULES: Mapping[Kind, str] = {"engine": "convoy.service.engine.server", "frontend": "convoy.service.frontend.server"}


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
                env={**os.environ, _METRICS: metrics_directory},
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


class Processes:
    """Starts the processes of a server, which count in one directory. One writer: the supervisor's loop."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_writable())
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


def _writable(memory: Path = _MEMORY) -> str:
    """Where counts can be kept: the usual folder for temporary files, else the shared memory that every container has.

    Raises BadConfig where neither can be written.
    """
    with suppress(FileNotFoundError):
        return tempfile.gettempdir()
    if os.access(memory, os.W_OK):
        return str(memory)
    raise BadConfig(
        "no folder for temporary files can be written: set TMPDIR to one, or mount one "
        f"(in Kubernetes an emptyDir) at /tmp or {memory}"
    )


def announce(directory: Path, address: str) -> None:
    """Leave word of where the server with these counts listens: HOST:PORT of gRPC."""
    with suppress(OSError):  # a full disk: whoever asks without an address asks the default one
        (directory / _ADDRESS).write_text(f"{os.getpid()} {address}\n")


def announced(folders: Iterable[Path] | None = None) -> list[str]:
    """Where the servers of this machine or container listen, as far as they have left word and still live."""
    found = []
    if folders is None:
        folders = {_MEMORY}
        with suppress(FileNotFoundError):
            folders.add(Path(tempfile.gettempdir()))
    for folder in folders:
        for file in sorted(folder.glob(f"{_PREFIX}*/{_ADDRESS}")):
            with suppress(OSError, ValueError):
                pid, address = file.read_text().split()
                if Path(f"/proc/{int(pid)}").exists():
                    found.append(_reachable(address))
    return found


def _reachable(address: str) -> str:
    # Who listens on all addresses is asked on the machine's own.
    host, _, port = address.rpartition(":")
    return f"{_OWN.get(host, host)}:{port}"


@cache
def ours() -> Processes:
    """Of the server that this process is."""
    return Processes()
