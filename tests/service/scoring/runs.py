"""Runs of `convoy score` in processes of their own, and what they leave."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet

CONVOY = str(Path(sys.executable).with_name("convoy"))
SECONDS = 120.0


def started(*arguments: object) -> subprocess.Popen[str]:
    """`convoy score`, started."""
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.Popen(
        [CONVOY, "score", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finished(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`convoy score`, run to its end."""
    process = started(*arguments)
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def parts(out: Path) -> dict[str, bytes]:
    """The parts of a run, by name."""
    return {each.name: each.read_bytes() for each in sorted(out.glob("part-*.parquet"))}


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of a run, in the order of its parts."""
    return [row for each in sorted(out.glob("part-*.parquet")) for row in pyarrow.parquet.read_table(each).to_pylist()]


def kill_when(process: subprocess.Popen[str], out: Path, count: int, chance: random.Random) -> bool:
    """Kills a run at some moment after it has `count` parts; whether it was still running."""
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until and len(list(out.glob("part-*.parquet"))) < count:
        threading.Event().wait(0.002)
    return kill_after(process, chance.uniform(0, 0.02))


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kills a run after so long; whether it was still running."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    return process.returncode == -signal.SIGKILL
