"""The processes of a server, started with exec; the first of each kind starts before the command line is parsed.

Parsing takes longer than starting a process, and the imports of an engine and a front end do not depend on it. A
process that never receives a role exits silently.
"""

import atexit
import os
import shutil
import signal
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
from convoy.service.ipc.pulse import Pulse, page
from convoy.service.supervisor import folders

Kind = Literal["engine", "frontend"]

_MEMORY = Path("/dev/shm")
_PREFIX = "convoy-metrics-"
_ADDRESS = "address"
_OWN = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
_METRICS = "PROMETHEUS_MULTIPROC_DIR"  # environment variable that prometheus_client reads at import

_SUPERVISORS = (signal.SIGHUP, signal.SIGINT)  # signals that it alone handles
_MODULES: Mapping[Kind, str] = {"engine": "convoy.service.engine.server", "frontend": "convoy.service.frontend.server"}


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that preserve packet boundaries: for messages to the supervisor, and for a Channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Process:
    """A started process. It receives its role over the socket `channel`."""

    def __init__(self, kind: Kind, metrics_directory: str) -> None:
        self.channel, remote = channel_pair()
        shown = page()
        self.pulse = Pulse(shown)
        # A signal mask outlasts exec. So these signals, which a terminal or `pkill` sends to all, never end a process
        # that the supervisor would have to replace: not even while it starts.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS)
        try:
            # spawn, not fork: gRPC's and onnxruntime's threads do not survive a fork.
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULES[kind], str(remote.fileno()), str(shown)],
                pass_fds=[remote.fileno(), shown],
                env={**os.environ, _METRICS: metrics_directory},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            remote.close()
            os.close(shown)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code: None while it is running; the negative number of the signal that killed it."""
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()


def hold_back() -> None:
    """Let SIGHUP wait until `let_through`: it must not end a server that is starting."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


def let_through() -> None:
    """Handle SIGHUP from now on, also one that has come before."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


class Processes:
    """Starts the processes of a server, which write metrics to one directory. One writer: the supervisor's loop."""

    def __init__(self) -> None:
        parent = Path(_writable())
        folders.remove_left(_PREFIX, parent)
        directory, self._lock = folders.made(_PREFIX, parent)
        self.directory = str(directory)
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)
        self._ahead: dict[Kind, Process] = {}

    def start_ahead(self) -> None:
        """Start one process of each kind in advance, to wait for `start`. Unused ones end with this process."""
        for kind in _MODULES:
            self._ahead[kind] = Process(kind, self.directory)
        atexit.register(self._end_those_ahead)

    def start(self, kind: Kind) -> Process:
        """Start a process of a kind, or use one started in advance. Raises OSError if the system lacks resources."""
        return self._ahead.pop(kind, None) or Process(kind, self.directory)

    def _end_those_ahead(self) -> None:
        for process in self._ahead.values():
            process.kill()


def _writable(memory: Path = _MEMORY) -> str:
    """A folder for metrics: where TMPDIR says, else the shared memory that every container has, where no disk can fill
    up or be slow, else the usual folder for temporary files.

    Raises BadConfig if none is writable.
    """
    if "TMPDIR" not in os.environ and os.access(memory, os.W_OK):
        return str(memory)
    with suppress(FileNotFoundError):
        return tempfile.gettempdir()
    if os.access(memory, os.W_OK):
        return str(memory)
    raise BadConfig(
        "no folder for temporary files can be written: set TMPDIR to one, or mount one "
        f"(in Kubernetes an emptyDir) at /tmp or {memory}"
    )


def announce(directory: Path, address: str) -> None:
    """Record the gRPC address, HOST:PORT, of the server with this metrics directory."""
    with suppress(OSError):  # a full disk: commands without an address then use the default one
        (directory / _ADDRESS).write_text(f"{os.getpid()} {address}\n")


def announced(parents: Iterable[Path] | None = None) -> list[str]:
    """The recorded addresses of the running servers on this machine or in this container."""
    if parents is None:
        # First where a server with this environment would write, then elsewhere.
        with suppress(BadConfig):
            if found := announced([Path(_writable())]):
                return found
        parents = [_MEMORY]
        with suppress(FileNotFoundError):
            parents = [_MEMORY, Path(tempfile.gettempdir())]
    addresses = []
    for folder in parents:
        for file in sorted(folder.glob(f"{_PREFIX}*/{_ADDRESS}")):
            with suppress(OSError, ValueError):
                pid, address = file.read_text().split()
                if Path(f"/proc/{int(pid)}").exists():
                    addresses.append(_reachable(address))
    return addresses


def _reachable(address: str) -> str:
    # A server that listens on all addresses is reached over loopback.
    host, _, port = address.rpartition(":")
    return f"{_OWN.get(host, host)}:{port}"


@cache
def current() -> Processes:
    return Processes()
