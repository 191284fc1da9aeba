"""`python -m tests.reliability FILE`: runs the probes in turn for a given time, and writes the totals into the page.

Totals are kept in .cache/reliability.json, and on the page: the next run goes on where the last one ended, however it
ended, and on whatever machine.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.performance import report
from tests.reliability import history, page
from tests.reliability.catalogue import PROBES
from tests.reliability.history import Line
from tests.reliability.probe import Probe

TOTALS = Path(".cache/reliability.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to begin no further chunk")
    parser.add_argument(
        "--only", action="append", default=[], metavar="R", help="only these probes, such as R2 or 'drains'"
    )
    parser.add_argument("--again", action="store_true", help="write the page again from the totals, try nothing")
    parser.add_argument("--fresh", action="store_true", help="forget the totals of these probes first")
    arguments = parser.parse_args()
    probes = [probe for probe in PROBES if not arguments.only or {probe.number, probe.unit} & set(arguments.only)]
    if unknown := set(arguments.only) - {name for probe in PROBES for name in (probe.number, probe.unit)}:
        numbers = ", ".join(dict.fromkeys(each.number for each in PROBES))
        parser.error(f"--only {min(unknown)}: want one of {numbers}, or the unit of one line, such as 'drains'")
    if arguments.fresh:
        history.update(TOTALS, {probe.key: Line() for probe in probes})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # servers under test end, too
    failed = 0 if arguments.again else soak(probes, arguments.seconds, arguments.file)
    write(arguments.file)
    sys.exit(1 if failed else 0)


def soak(probes: Sequence[Probe], seconds: float, file: Path) -> int:
    """Runs chunks in turn; the number of failures, blind controls included."""
    end = time.monotonic() + seconds
    failed = 0
    seen: set[str] = set()
    # Whoever has least of what it wants comes next, so all progress alike, also over several runs.
    while time.monotonic() < end:
        lines = totals(file)
        probe = min(
            probes,
            key=lambda each: (each.key in seen, lines.get(each.key, Line()).tally.trials / each.wanted),
        )
        line = lines.get(probe.key, Line())
        if probe.key not in seen:
            seen.add(probe.key)
            line = line._replace(control=probe.control(line.chunks).failed > 0)
            failed += not line.control
        begin = time.monotonic()
        tally = probe.run(probe.chunk, line.chunks)
        failed += tally.failed
        line = line.with_chunk(tally, _machine())
        history.update(TOTALS, {probe.key: line})
        write(file)
        said = "" if line.control else ", CONTROL NOT FOUND"
        print(
            f"{probe.number}  {tally.trials} {probe.unit}: {tally.failed} failed, "
            f"{time.monotonic() - begin:.0f} s{said}",
            file=sys.stderr,
            flush=True,
        )
        for example in tally.examples:
            print(f"    {example}", file=sys.stderr, flush=True)
    return failed


def _machine() -> str:
    # The day has a column of its own.
    return report.machine().partition(", ")[2]


def totals(file: Path) -> dict[str, Line]:
    """What was counted here, and for lines that never ran here what the page says."""
    return {**page.lines(PROBES, file.read_text(encoding="utf-8")), **history.load(TOTALS)}


def write(file: Path) -> None:
    """The page, from the totals."""
    with history.locked(TOTALS):
        before = file.read_text(encoding="utf-8")
        table = page.table(PROBES, history.load(TOTALS), before)
        fresh = file.with_suffix(".new")
        fresh.write_text(page.replaced(before, table), encoding="utf-8")
        fresh.replace(file)


if __name__ == "__main__":
    main()
