"""A client process: reads its plan, reports ready, reads the start time, runs, and writes its findings.

It uses standard input and output, one line per message; the findings are last. It exits when standard input closes,
because its parent has gone.
"""

import os
import sys
import threading

import msgspec

from convoy.service.bench import client, findings
from convoy.service.bench.plan import Share


def main() -> None:
    """Run one share to its end."""
    told = msgspec.json.decode(sys.stdin.buffer.readline(), type=Share)
    found = client.run(told.plan, told.share, _ready)
    sys.stdout.buffer.write(findings.encode(found) + b"\n")
    sys.stdout.buffer.flush()
    os._exit(0)  # the thread that watches standard input would keep the interpreter alive


def _ready() -> float:
    print("ready", flush=True)
    begin = float(sys.stdin.buffer.readline() or sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return begin


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
