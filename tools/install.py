"""Installs packages with pip into the environment that runs this, and shows progress. `make` runs it."""

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

REDRAW_SECONDS = 0.5  # on a terminal
LINE_SECONDS = 5.0  # elsewhere: the shortest time between two lines
SILENT_SECONDS = 20.0  # elsewhere: the longest, even if nothing changes
TAIL_LINES = 25  # of pip's output, shown after a failure
STOP_SECONDS = 10.0

_COLLECTING = re.compile(r"Collecting ([A-Za-z0-9._-]+)")
_FETCHING = re.compile(r"\s*(Downloading|Using cached) (\S+\.(?:whl|tar\.gz))(?: \((\S+ \S+)\))?\s*$")
_INSTALLING = re.compile(r"Installing collected packages: (.+)")


class Progress:
    """What pip is doing, from its output so far.

    Any version of pip prints these lines. Its own progress bars differ between versions, and cover only downloads.
    """

    def __init__(self) -> None:
        self.collected: dict[str, None] = {}
        self.fetched: list[str] = []
        self.file, self.size = "", ""  # the file being fetched
        self.packages: list[str] = []  # in the order of their installation

    def read(self, line: str) -> None:
        """Updates the state by one line of pip's output."""
        if match := _COLLECTING.match(line):
            self.collected[_normalised(match[1])] = None
        elif match := _FETCHING.match(line):
            name = Path(match[2]).name
            self.fetched.append("-".join(name.split("-")[:2]))
            self.file, self.size = (name, match[3] or "") if match[1] == "Downloading" else ("", "")
        elif match := _INSTALLING.match(line):
            self.packages = [_normalised(name) for name in match[1].split(", ")]
            self.file = ""

    def shown(self, bytes_fetched: int, installed: set[str]) -> str:
        """Returns one line.

        bytes_fetched  size so far of the file being fetched
        installed      normalised names of the packages that are in the environment
        """
        if self.packages:
            waiting = [name for name in self.packages if name not in installed]
            done = len(self.packages) - len(waiting)
            return f"installing {done} of {len(self.packages)} packages" + (f": {waiting[0]}" if waiting else "")
        if self.fetched:
            part = f"{bytes_fetched / 1e6:.0f} of " if self.file and self.size.endswith("MB") and bytes_fetched else ""
            size = f" ({part}{self.size})" if self.file and self.size else ""
            return f"fetching package {len(self.fetched)}: {self.fetched[-1]}{size}"
        if self.collected:
            return f"looking up package {len(self.collected)}: {next(reversed(self.collected))}"
        return "starting pip"


def install(arguments: Sequence[str], out: TextIO) -> int:
    """Runs `pip install` with these arguments, shows its progress on `out` and returns its exit code. If it fails, the
    end of its output goes to stderr."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    with tempfile.TemporaryDirectory(prefix="convoy-install-") as downloads:
        # pip puts incomplete files into its temporary folder; their size is the progress of a download.
        environment = os.environ | {"TMPDIR": downloads, "PYTHONUNBUFFERED": "1"}
        pip = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        try:
            output = _follow(pip, Path(downloads), out)
        except BaseException:
            pip.terminate()
            pip.wait(STOP_SECONDS)
            raise
    if pip.returncode:
        print("\n".join(output[-TAIL_LINES:]), file=sys.stderr)
        print(
            f"pip ended with exit code {pip.returncode}; the same command continues with what it has", file=sys.stderr
        )
    return pip.returncode


def _follow(pip: "subprocess.Popen[str]", downloads: Path, out: TextIO) -> list[str]:
    progress, output, display = Progress(), [], Display(out)
    lines = _lines(pip)
    ended = False
    while not ended:
        try:
            line = lines.get(timeout=REDRAW_SECONDS)
        except queue.Empty:
            pass
        else:
            ended = line is None
            if line is not None:
                output.append(line)
                progress.read(line)
        display.show(progress.shown(_incomplete_bytes(downloads, progress.file), _installed()))
    pip.wait()
    display.end(f"installed {len(progress.packages)} packages" if not pip.returncode else "")
    return output


class Display:
    """One line that is redrawn on a terminal; elsewhere a line every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.redraws = out, out.isatty()
        self.start = time.monotonic()
        self.printed, self.text = -SILENT_SECONDS, ""

    def show(self, text: str) -> None:
        """Shows the state."""
        now = time.monotonic() - self.start
        if self.redraws:
            if text != self.text or now - self.printed >= REDRAW_SECONDS:
                width = shutil.get_terminal_size().columns - 1
                self.out.write(f"\r\x1b[2K{f'  {now:3.0f} s  {text}'[:width]}")
                self.out.flush()
                self.text, self.printed = text, now
        elif now - self.printed >= (LINE_SECONDS if text != self.text else SILENT_SECONDS):
            self._line(now, text)

    def end(self, text: str) -> None:
        """Ends the line with a summary, if there is one."""
        if self.redraws:
            self.out.write("\r\x1b[2K")
        if text:
            self._line(time.monotonic() - self.start, text)
        self.out.flush()

    def _line(self, now: float, text: str) -> None:
        print(f"  {now:3.0f} s  {text}", file=self.out, flush=True)
        self.text, self.printed = text, now


def _lines(pip: "subprocess.Popen[str]") -> "queue.SimpleQueue[str | None]":
    """Returns a queue of pip's lines, and None at their end."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert pip.stdout is not None
        for line in pip.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _incomplete_bytes(downloads: Path, file: str) -> int:
    if not file:
        return 0
    sizes = []
    for path in downloads.glob(f"pip-*/{file}"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # pip has just moved it
            continue
    return max(sizes, default=0)


def _installed() -> set[str]:
    """Returns the normalised names of complete packages. pip writes the file RECORD last."""
    folders = [Path(folder) for folder in sys.path if Path(folder).name == "site-packages"]
    records = (record for folder in folders for record in folder.glob("*.dist-info/RECORD"))
    return {_normalised(record.parent.name.partition("-")[0]) for record in records}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Installs what the arguments name. Returns pip's exit code, or 130 after Ctrl-C."""
    try:
        return install(sys.argv[1:], sys.stdout)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues with what is installed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
