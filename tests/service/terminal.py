"""A command on a terminal of a given size, and without one."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CONVOY = str(Path(sys.executable).with_name("convoy"))
SECONDS = 120.0
_HOME = "\x1b[H"  # the cursor goes to the first line
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])")


class Terminal:
    """`convoy` on a terminal; `shown` is all that it has written, with its escape codes."""

    def __init__(self, arguments: Sequence[object], columns: int, lines: int, environment: Mapping[str, str]) -> None:
        self.columns, self.shown = columns, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a read may end within a character
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [CONVOY, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**inherited, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment},
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read_until(self, wanted: str) -> None:
        """Reads on until the text, without escape codes, has `wanted`."""
        until = time.monotonic() + SECONDS
        while wanted not in plain(self.shown):
            assert self._read(until), f"no {wanted!r} in {self.shown!r}"

    def end(self) -> int:
        """Reads to the end; the exit code."""
        until = time.monotonic() + SECONDS
        while self._read(until):
            pass
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def widest(self) -> int:
        return max(len(line) for line in plain(self.shown.replace(_HOME, "\n")).splitlines())

    def _read(self, until: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, until - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # the last one that had the terminal open has closed it
            return False
        self.shown += self._decoder.decode(data)
        return bool(data)


@contextmanager
def terminal(*arguments: object, columns: int = 80, lines: int = 24, **environment: str) -> Iterator[Terminal]:
    """Runs `convoy` on a terminal of this size; what still runs in the end is killed."""
    running = Terminal(arguments, columns, lines, environment)
    try:
        yield running
    finally:
        running.close()


def plain(text: str) -> str:
    """Without escape codes."""
    return _ESCAPE.sub("", text).replace("\r", "")


@contextmanager
def piped(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """Runs `convoy` into a pipe: the process, and its lines as they come."""
    process = subprocess.Popen(
        [CONVOY, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    try:
        yield process, iter(process.stdout)
    finally:
        watchdog.cancel()
        process.kill()
        with contextlib.suppress(ValueError):
            process.stdout.close()
        process.wait()
